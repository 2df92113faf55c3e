"""The web server of a study: a page, what it asks for, and who may ask."""

import hmac
import ipaddress
import logging
import os
import signal
import socket
import sqlite3
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, TypedDict
from urllib.parse import urlsplit

import waitress
from flask import Flask, Response, abort, jsonify, make_response, redirect, request
from msgspec import Meta
from werkzeug.exceptions import HTTPException

from vgan_fast.errors import UserError
from vgan_fast.foreign import MalformedError, parse_json

from .sheets import sheet_columns
from .store import FullError, Side, Study, TooEarlyError, UnknownTrialError

BODY = 4096  # bytes of a request's body; a vote has a hundred
HEADER = 16384  # bytes of its headers
THREADS = 8
CONNECTIONS = 500  # browsers keep several open each
YEAR = 365 * 24 * 3600  # seconds that a browser remembers who it is

# The page is on its own: nothing of another site in it, and it in nothing of another site.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Vote(TypedDict):
    """What a rater's page sends."""

    key: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,100}\Z")]
    side: Side


@dataclass(frozen=True)
class Access:
    """Who may reach the server.

    A page of a foreign site that names its own host after this machine's address (DNS rebinding)
    is told by the Host header: only numbers and known names are taken there.
    """

    names: frozenset[str]  # of this machine
    opened: bool  # whether from other machines; a token is then asked for

    @classmethod
    def through(cls, host: str) -> "Access":
        """What listening at `host` allows."""
        if _is_loopback(host):
            return cls(frozenset({"localhost"}), opened=False)
        own = (host, "localhost", socket.gethostname(), socket.getfqdn())
        return cls(frozenset(name.lower() for name in own), opened=True)

    def admits(self, host_header: str) -> bool:
        """Whether a request with that Host header was meant for this server."""
        try:
            host = urlsplit(f"//{host_header}").hostname or ""
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in self.names
        return self.opened or address.is_loopback


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_app(study: Study, access: Access) -> Flask:
    """The WSGI application of a study.

    It answers with JSON: the state of a rater is "new", "trial" or "done"; of a trial, a random key
    and its number. Which condition is on which side never leaves it.
    """
    app = Flask(__name__, static_folder="page")
    app.config["MAX_CONTENT_LENGTH"] = BODY
    rater_cookie, token_cookie = f"rater-{study.id}", f"token-{study.id}"
    clip = {
        "frames": study.options.frames,
        "size": study.options.size,
        "fps": study.options.fps,
        "columns": sheet_columns(study.options.frames),
    }

    def remember(response: Response, cookie: str, value: str) -> Response:
        response.set_cookie(cookie, value, max_age=YEAR, httponly=True, samesite="Lax")
        return response

    def is_token(given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), study.token.encode())

    def state(secret: str | None) -> Response:
        if secret is None or not study.knows(secret):
            told = {"state": "new"}
        elif trial := study.current(secret):
            told = {"state": "trial", "key": trial.key, "number": trial.number}
        else:
            told = {"state": "done"}
        return jsonify(told | {"of": study.options.length, "clip": clip})

    @app.before_request
    def refuse_strangers() -> Response | None:
        if not access.admits(request.host):
            abort(HTTPStatus.FORBIDDEN, "this name is not the study's; use the address it printed")
        own = {f"{scheme}://{request.host}" for scheme in ("http", "https")}
        if request.method == "POST" and request.headers.get("Origin") not in own:
            abort(HTTPStatus.FORBIDDEN, "only the study's own page may send this")
        if not access.opened or is_token(request.cookies.get(token_cookie)):
            return None
        if request.path == "/" and is_token(request.args.get("token")):
            # Not left in the address, which people copy and pictures of screens show.
            return remember(redirect("/"), token_cookie, study.token)
        abort(HTTPStatus.FORBIDDEN, "open the whole link that you were given, with its token")

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/trial")
    def current() -> Response:
        return state(request.cookies.get(rater_cookie))

    @app.post("/begin")
    def begin() -> Response:
        secret = request.cookies.get(rater_cookie)
        if secret is None or not study.knows(secret):
            secret = study.begin()
        return remember(state(secret), rater_cookie, secret)

    @app.get("/sheet/<key>")
    def sheet(key: str) -> Response:
        response = make_response(study.show(request.cookies.get(rater_cookie, ""), key))
        response.mimetype = "image/png"
        return response

    @app.post("/vote")
    def vote() -> Response:
        if not request.is_json:  # what a form of another site sends is not
            abort(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is JSON")
        try:
            given = parse_json(request.get_data(), Vote)
        except MalformedError:
            abort(HTTPStatus.BAD_REQUEST, "a vote is a key and a side, left or right")
        secret = request.cookies.get(rater_cookie, "")
        study.vote(secret, given["key"], given["side"])
        return state(secret)

    def explained(status: HTTPStatus, reason: str) -> tuple[Response, HTTPStatus]:
        return jsonify(error=reason), status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException):
        if request.path == "/":  # a person reads it
            return Response(f"Sorry: {error.description}.", error.code, mimetype="text/plain")
        return explained(HTTPStatus(error.code), error.description)

    @app.errorhandler(UnknownTrialError)
    def unknown(_: UnknownTrialError):
        return explained(HTTPStatus.NOT_FOUND, "no such trial")

    @app.errorhandler(TooEarlyError)
    def too_early(_: TooEarlyError):
        return explained(HTTPStatus.CONFLICT, "the clips have not been shown once yet")

    @app.errorhandler(UnicodeDecodeError)  # what Werkzeug raises, of a query
    def no_text(_: UnicodeDecodeError):
        return explained(HTTPStatus.BAD_REQUEST, "the address is no text")

    @app.errorhandler(FullError)
    def full(_: FullError):
        return explained(HTTPStatus.FORBIDDEN, "the study takes no more raters")

    @app.errorhandler(MalformedError)
    def damaged(error: MalformedError):
        app.logger.error("the study's file is damaged: %s", error)
        return explained(HTTPStatus.INTERNAL_SERVER_ERROR, "the study's file is damaged")

    @app.errorhandler(sqlite3.Error)
    def unsaved(error: sqlite3.Error):
        app.logger.error("nothing was saved: %s", error)
        return explained(HTTPStatus.SERVICE_UNAVAILABLE, "the study cannot be written to now")

    return app


def serve(study: Study, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM, after printing the address.

    Args:
        study: what raters take part in.
        host: name or address to listen at.
        port: 0 takes a free one.

    Raises:
        UserError: when that cannot be listened at.
    """
    access = Access.through(host)
    with _listen(host, port) as listener:
        server = waitress.create_server(
            create_app(study, access),
            sockets=[listener],
            threads=THREADS,
            max_request_body_size=BODY,  # or it would take a gigabyte to the disk first
            max_request_header_size=HEADER,
            connection_limit=CONNECTIONS,
            asyncore_use_poll=True,
        )
        print(_link(study, access, *listener.getsockname()[:2]), flush=True)
        print("Ctrl-C ends; the same command goes on", flush=True)
        # It warns of every request that has to wait for a thread, which is no trouble here.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.run()  # Ends by itself at KeyboardInterrupt.
        finally:
            signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except UnicodeError:
        reason = "no name of a machine"
    except socket.gaierror as error:
        reason = error.strerror
    except OSError as error:
        reason = os.strerror(error.errno)  # create_server adds the address to its own
    raise UserError(
        f"--host {host} --port {port}: cannot be listened at ({reason.lower()}); choose another"
    )


def _link(study: Study, access: Access, host: str, port: int) -> str:
    """What raters open."""
    if ipaddress.ip_address(host).is_unspecified:
        host = _own_address()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={study.token}" if access.opened else "")


def _own_address() -> str:
    """This machine's address in its network, or its name where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing; the address is reserved for examples.
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()

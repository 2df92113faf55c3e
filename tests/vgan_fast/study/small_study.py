"""Studies of a few tiny clips, and raters of them without a browser."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import numpy as np

from vgan_fast.study.clips import Condition
from vgan_fast.study.store import Options, create

FRAMES, SIZE, FPS = 4, 8, 60  # a clip lasts 67 ms


def conditions(count=3, foil=True):
    """Clips whose grey level is 10 times their condition's place, plus their number."""
    kinds = {"ours": "model", "theirs": "model", "real": "real", "static real": "static"}
    if foil:
        kinds["scramble"] = "foil"
    for place, (name, kind) in enumerate(kinds.items()):
        levels = 10 * (1 + place) + np.arange(count, dtype=np.uint8)
        clips = np.broadcast_to(levels[:, None, None, None, None], (count, FRAMES, SIZE, SIZE, 3))
        yield Condition(name, kind, f"source of {name}", clips)


def make_study(path, trials=6, catch=2, count=3, fps=FPS):
    options = Options(
        clips=("ours=a", "theirs=b", "real=c"),
        static=("real",),
        count=count,
        trials=trials,
        catch=catch,
        frames=FRAMES,
        size=SIZE,
        fps=fps,
        seed=0,
    )
    create(path, options, conditions(count, foil=catch > 0))
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(db, port, *options):
    """The server in a process of its own, killed at the end unless it has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vgan_fast.study", "serve", db, "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # As a terminal starts it: where tests run in the background, Ctrl-C is ignored by all.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in process.stdout:
            if line.startswith("http://"):
                process.link = line.strip()
                break
        else:
            raise AssertionError(process.communicate()[1])
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


class Rater:
    """Somebody who answers over HTTP, and remembers every vote that was acknowledged."""

    def __init__(self, port):
        self.port = port
        self.cookie = None
        self.acknowledged = {}

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        if self.cookie:
            headers["Cookie"] = self.cookie
        try:
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.getheader("Set-Cookie"):
            self.cookie = answer.getheader("Set-Cookie").split(";")[0]
        assert answer.status == 200, content
        return content if path.startswith("/sheet") else json.loads(content)

    def answer(self, state, side):
        """Look at a trial, vote on it and return the next state."""
        self.ask("GET", f"/sheet/{state['key']}")
        time.sleep(FRAMES / FPS + 0.005)
        following = self.ask("POST", "/vote", {"key": state["key"], "side": side})
        self.acknowledged[state["key"]] = side
        return following

"""What the command line programs share."""

import contextlib
import dataclasses
import io
import signal
import sys
import threading
import typing
from collections.abc import Collection, Iterator

import click

from vgan_fast.errors import UserError
from vgan_fast.files import FULL


class _InOneLine:
    """Makes a click command report bad input or lack of memory in one line on stderr, status 2."""

    def main(self, *args, **kwargs):
        """Run; see `click.Command.main`."""
        threading.excepthook = _unless_reported
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # File names need not be valid UTF-8.
                stream.reconfigure(errors="backslashreplace")
        came: list[int] = []
        try:
            with _interrupted_by_sigterm(came):
                status = super().main(*args, **{**kwargs, "standalone_mode": False})
                sys.stdout.flush()  # or Python itself complains of a full disk as it ends
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except click.ClickException as error:
            print(f"error: {error.format_message()} (see --help)", file=sys.stderr)
            status = 2
        except (click.Abort, KeyboardInterrupt):  # Abort is a RuntimeError
            print("error: interrupted", file=sys.stderr)
            status = 128 + (came or [signal.SIGINT])[0]
        except OSError as error:
            if error.errno not in FULL:
                raise
            what = error.filename or "standard output"
            print(f"error: {what}: the disk is full; free some space", file=sys.stderr)
            status = 2
            sys.stdout = None  # what it still holds would fail once more
        except (MemoryError, RuntimeError) as error:
            # PyTorch's CPU allocator raises a plain RuntimeError.
            lacking = ("out of memory", "allocate memory", "enough memory")
            if not isinstance(error, MemoryError) and not any(s in str(error) for s in lacking):
                raise
            options = "--batch-size, --count, --width or --size"
            print(f"error: out of memory: lower {options}", file=sys.stderr)
            status = 2
        sys.exit(status)


class Program(_InOneLine, click.Command):
    """A command that reports bad input or lack of memory as one line on stderr, with status 2."""


class Programs(_InOneLine, click.Group):
    """A group of commands that report as a `Program` does."""


@contextlib.contextmanager
def _interrupted_by_sigterm(came: list[int]) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: processes are stopped and half-written files removed.

    When it comes it is added to `came`.
    """

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unless_reported(failure: threading.ExceptHookArgs) -> None:
    # TensorBoard's writing thread raises its OSError once more in the main thread.
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def options_of(settings: type, presets: dict[str, dict], names: Collection[str] | None = None):
    """Decorator: a command line option for each field of a dataclass, None where not given.

    The help of an option names its default, in each preset where they differ. A field that is true,
    false or None gets a pair, `--name/--no-name`. `names` are the fields that get an option, all
    where absent.
    """

    def decorate(command):
        types = typing.get_type_hints(settings)
        for field in reversed(dataclasses.fields(settings)):
            if names is not None and field.name not in names:
                continue
            flag = "--" + field.name.replace("_", "-")
            kind = _click_type(types[field.name])
            if types[field.name] == bool | None:
                flag += flag.replace("--", "/--no-")
            command = click.option(
                flag,
                field.name,
                type=kind,
                is_flag=kind is bool,
                default=None,
                help=f"{field.metadata['help']}{_defaults(field, presets)}",
            )(command)
        return command

    return decorate


def _defaults(field: dataclasses.Field, presets: dict[str, dict]) -> str:
    values = {name: preset.get(field.name, field.default) for name, preset in presets.items()}
    if field.default is None or isinstance(field.default, bool):
        return ""
    if len(set(values.values())) == 1:
        return f"  [{next(iter(values.values()))}]"
    return f"  [{', '.join(f'{name}: {value}' for name, value in values.items())}]"


def _click_type(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return click.Choice(typing.get_args(annotation))
    # The plain type of `float | None`; others are plain already.
    return next(iter(typing.get_args(annotation)), annotation)

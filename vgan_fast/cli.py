"""What the command line programs share."""

import contextlib
import dataclasses
import io
import os
import signal
import sys
import threading
import typing
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from vgan_fast.errors import UserError
from vgan_fast.files import FULL


class _InOneLine:
    """Makes a click command report bad input or lack of memory in one line on stderr, status 2."""

    def main(self, *args, **kwargs):
        """Run; see `click.Command.main`."""
        threading.excepthook = _unless_reported
        first = os.environ.get("RANK", "0") == "0"  # torchrun gives all its processes the same
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # File names need not be valid UTF-8.
                stream.reconfigure(errors="backslashreplace")
        came: list[int] = []
        try:
            with _interrupted_by_signals(came):
                status = super().main(*args, **{**kwargs, "standalone_mode": False})
                sys.stdout.flush()  # or Python itself complains of a full disk as it ends
        except SystemExit:
            raise
        except BaseException as error:
            status = _reported(error, came, first)
        sys.exit(status)


def _reported(error: BaseException, came: list[int], first: bool) -> int:
    """Say in one line what ended a program, and return its status; raise what is a fault of ours.

    `came` are the signals that interrupted it: they may have come out of a library as something
    other than `KeyboardInterrupt`. Of torchrun's processes only the first says what all would.
    """
    status, line, of_all = 2, None, False
    if came or isinstance(error, (click.Abort, KeyboardInterrupt)):
        status, line, of_all = 128 + (came or [signal.SIGINT])[0], "interrupted", True
    elif isinstance(error, UserError):
        line = str(error)
    elif isinstance(error, click.ClickException):
        line, of_all = f"{error.format_message()} (see --help)", True
    elif isinstance(error, OSError) and error.errno in FULL:
        line = f"{error.filename or 'standard output'}: the disk is full; free some space"
        sys.stdout = None  # what it still holds would fail once more
    # PyTorch's CPU allocator raises a plain RuntimeError.
    elif isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(s in str(error) for s in ("out of memory", "allocate memory", "enough memory"))
    ):
        line = "out of memory: lower --batch-size, --count, --width or --size"
    if line is None:
        raise error
    if first or not of_all:
        print(f"error: {_printable(line)}", file=sys.stderr)
    return status


def _printable(message: str) -> str:
    """In one line: a name of a file may hold what ends it, or what a terminal obeys."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in message
    )


class Program(_InOneLine, click.Command):
    """A command that reports bad input or lack of memory as one line on stderr, with status 2.

    Of the processes that torchrun starts only the first says what is wrong with the options.

    Attributes:
        shared: whether those processes share the work (`distributed.joined`).
    """

    shared = False

    def invoke(self, ctx: click.Context):
        """Run; see `click.Command.invoke`."""
        many = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
        if many and not self.shared:
            raise click.UsageError("this program runs as one process; start it without torchrun")
        return super().invoke(ctx)


class SharedProgram(Program):
    """A program whose work the processes that torchrun starts share."""

    shared = True


class Programs(_InOneLine, click.Group):
    """A group of commands that report as a `Program` does."""


class _InterruptedError(KeyboardInterrupt):
    """Python ends with SIGINT, whatever was asked for, if a plain one has passed through `exec`."""


@contextlib.contextmanager
def _interrupted_by_signals(came: list[int]) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: processes are stopped and half-written files removed.

    The signals that come are added to `came`.
    """

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise _InterruptedError

    def repeat(lost: object) -> None:
        # In a finaliser Python reports an interruption and drops it.
        if came and issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), came[-1])).start()
        elif not came:  # what half-made objects say as they go is no news then
            sys.__unraisablehook__(lost)

    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return
    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    hook, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        yield
    finally:
        if not came:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


class RunPath(click.Path):
    """A run of vgan_fast.train or one of its checkpoints; for a `.t7` file, the run made of it."""

    def __init__(self, file_okay: bool = False):
        super().__init__(path_type=Path, exists=True, file_okay=file_okay)

    def convert(self, value, param, ctx):
        """The folder; see `click.Path.convert`."""
        if Path(value).suffix == ".t7" and Path(value).is_file():
            # PyTorch is imported where it is used: --help should not wait.
            from vgan_fast.interchange.torch7_runs import run_of_torch7

            return run_of_torch7(Path(value))
        return super().convert(value, param, ctx)


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

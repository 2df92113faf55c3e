"""What the command line programs share."""

import dataclasses
import io
import sys
import threading
import typing
from collections.abc import Collection
from pathlib import Path

import click

from vgan_fast.errors import UserError


class _InOneLine:
    """Makes a click command report bad input or lack of memory in one line on stderr, status 2."""

    def main(self, *args, **kwargs):
        """Run; see `click.Command.main`."""
        threading.excepthook = _unless_reported
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # File names need not be valid UTF-8.
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except UserError as error:
            print(f"error: {_printable(str(error))}", file=sys.stderr)
            status = 2
        except click.ClickException as error:
            print(f"error: {_printable(error.format_message())} (see --help)", file=sys.stderr)
            status = 2
        except (click.Abort, KeyboardInterrupt):  # Abort is a RuntimeError
            print("error: interrupted", file=sys.stderr)
            status = 130
        except (MemoryError, RuntimeError) as error:
            # PyTorch's CPU allocator raises a plain RuntimeError.
            lacking = ("out of memory", "allocate memory", "enough memory")
            if not isinstance(error, MemoryError) and not any(s in str(error) for s in lacking):
                raise
            options = "--batch-size, --count, --width or --size"
            print(f"error: out of memory: lower {options}", file=sys.stderr)
            status = 2
        sys.exit(status)


def _printable(message: str) -> str:
    """In one line: a name of a file may hold what ends it, or what a terminal obeys."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in message
    )


class Program(_InOneLine, click.Command):
    """A command that reports bad input or lack of memory as one line on stderr, with status 2."""


class Programs(_InOneLine, click.Group):
    """A group of commands that report as a `Program` does."""


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

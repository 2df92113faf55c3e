"""`python -m vgan_fast.study`: "Which video is more realistic?", asked on a local page."""

import sys
from pathlib import Path

import click

from vgan_fast.cli import Program, Programs
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

# What needs PyTorch or the libraries of the extra is imported where it is used: processes that
# decode videos run this file's top once more, and a study that goes on needs no PyTorch.

DEFAULTS = {"static": (), "count": 64, "trials": 40, "catch": 4, "fps": 12, "seed": 0}


@click.group(cls=Programs, no_args_is_help=False)
def main() -> None:
    """Ask people which of two clips is more realistic, and count their answers."""


@main.command(cls=Program)
@click.argument("db", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--clips",
    multiple=True,
    metavar="NAME=SOURCE",
    help="a condition, at least two: a run of vgan_fast.train, videos as its --data takes them, or "
    "'synthetic'; raters never see the name",
)
@click.option(
    "--static",
    multiple=True,
    metavar="NAME",
    help="one condition more: the clips of NAME, each frozen at its first frame",
)
@click.option("--count", type=click.IntRange(1, 1000), help="clips of each condition  [64]")
@click.option("--trials", type=click.IntRange(1, 10_000), help="comparisons a rater makes  [40]")
@click.option(
    "--catch",
    type=click.IntRange(0, 1000),
    help="trials on top that show whether a rater looks: a real clip beside noise  [4]",
)
@click.option("--fps", type=click.IntRange(1, 60), help="frames per second shown  [12]")
@click.option("--seed", type=click.IntRange(0, 2**31), help="of the clips, not of trials  [0]")
@click.option(
    "--frames", type=click.IntRange(2, 512), help="of a clip  [those of the runs; without any, 32]"
)
@click.option(
    "--size", type=click.IntRange(8, 512), help="pixels a side  [that of the runs; without any, 64]"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="where clips are generated",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="address to listen at; any but this machine's own opens the study to others, by a link "
    "with a token",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def serve(db: Path, device: str, host: str, port: int, **given) -> int:
    """Make the study DB of some --clips, or go on with it, and serve its page until Ctrl-C."""
    try:
        from vgan_fast.study.server import serve as serve_study
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    from vgan_fast.study.store import Study

    given = {name: value for name, value in given.items() if value not in (None, ())}
    if not db.exists():
        _make(db, device, given)
    study = Study(db)
    options = study.options
    for name, value in given.items():
        made = getattr(options, name)
        if value != made:
            raise UserError(
                f"--{name} {_said(value)}: {db} was made with {_said(made)}; leave the option out"
                " to go on, or name another file"
            )
    print(
        f"{db}: {len(study.conditions)} conditions ({', '.join(study.conditions)}),"
        f" {options.count} clips of each, {options.frames} frames of {options.size}x{options.size};"
        f" {options.trials} trials and {options.catch} catch trials a rater"
    )
    serve_study(study, host, port)
    print(f"{len(study.answers())} votes in {db}")
    return 0


@main.command(cls=Program)
@click.argument("db", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file to write"
)
@click.option(
    "--allowed-misses",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="catch trials that a rater may miss and still count in the second table; whoever answers "
    "blindly passes 4 without a miss once in 16 times, with one allowed 5 times",
)
def results(db: Path, out: Path | None, allowed_misses: int) -> int:
    """Print how often each condition of the study DB was preferred over each other."""
    try:
        from vgan_fast.study.analysis import as_markdown
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    from vgan_fast.study.store import Study

    study = Study(db)
    text = as_markdown(study.answers(), study.conditions, allowed_misses)
    if out:
        with written_whole(out) as part:
            part.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _make(db: Path, device: str, given: dict) -> None:
    """Read or generate every clip and write the study.

    Raises:
        UserError: an option or a source is unusable.
    """
    from vgan_fast.device import find_device
    from vgan_fast.study.clips import Clips
    from vgan_fast.study.store import MOST_CONDITIONS, Options, create

    sources = [_name_and_source(text) for text in given.get("clips", ())]
    given = {**DEFAULTS, **given}
    if len(sources) + len(given["static"]) < 2:
        raise UserError(
            f"{db}: is no study yet, and two conditions are the least: name them with"
            " --clips NAME=SOURCE"
        )
    if len(sources) + len(given["static"]) >= MOST_CONDITIONS:  # and one for catch trials
        raise UserError(f"--clips and --static: name {MOST_CONDITIONS} or more conditions")
    clips = Clips(
        sources,
        given["static"],
        foil=given["catch"] > 0,
        count=given["count"],
        seed=given["seed"],
        frames=given.get("frames"),
        size=given.get("size"),
        device=find_device(device),
    )
    options = Options(**{**given, "frames": clips.frames, "size": clips.size})
    print(f"making {db}", flush=True)
    create(db, options, clips)


def _name_and_source(text: str) -> tuple[str, str]:
    name, equals, source = (part.strip() for part in text.partition("="))
    if not (name and equals and source):
        raise UserError(f"--clips {text}: must be NAME=SOURCE")
    from vgan_fast.study.store import LONGEST_NAME, is_name

    if not is_name(name):
        raise UserError(
            f"--clips {text}: a name has up to {LONGEST_NAME} printable characters but |"
        )
    return name, source


def _said(value) -> str:
    return (" ".join(value) or "nothing") if isinstance(value, tuple) else str(value)


def _without_extra(error: ModuleNotFoundError) -> UserError:
    library = (error.name or "").partition(".")[0]
    return UserError(
        f"the study needs {library}, which is not installed: pip install 'vgan_fast[study]'"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Where programs write clips: one picture of all of them, or a folder with a file for each."""

from pathlib import Path

import click

from vgan_fast.errors import UserError

FPS = 12  # a clip of 32 frames lasts 2.7 s
WHOLE = 1024  # most clips in one picture, which is held in memory
PICTURES = (".gif", ".mp4", ".png")


def output_options(default: str, of: str):
    """Decorator: the options `--out`, `--each` and `--fps` of a click command.

    Args:
        default: of `--out`.
        of: what there is a file for each of, in words.
    """

    def decorate(command):
        for option in (
            click.option(
                "--fps",
                type=click.IntRange(1, 50),
                default=FPS,
                show_default=True,
                help="frames per second of animations",
            ),
            click.option(
                "--each",
                type=click.Choice(["mp4", "gif", "png"]),
                default="mp4",
                show_default=True,
                help="format of the files in a folder",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                default=Path(default),
                show_default=True,
                help="one .gif or .mp4 animation or .png film strip of all; with another name a "
                f"folder with a file for each {of}",
            ),
        ):
            command = option(command)
        return command

    return decorate


def is_whole(out: Path) -> bool:
    """Whether `--out` names one picture of all clips, not a folder.

    Raises:
        UserError: when it can be neither.
    """
    if out.suffix not in ("", *PICTURES):
        raise UserError(f"--out {out}: must end in .gif, .mp4 or .png, or be a folder's name")
    if not out.suffix and out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder, or a .gif, .mp4 or .png file")
    if out.suffix and out.is_dir():
        raise UserError(f"{out}: is a folder; name a file, or a folder without {out.suffix}")
    return bool(out.suffix)


class Names:
    """File names after the inputs', each given once."""

    def __init__(self):
        self._given: set[str] = set()

    def of(self, source: Path, suffix: str) -> str:
        """The next name for what is made of `source`, with that suffix."""
        name, number = source.stem, 1
        while (given := f"{name}.{suffix}") in self._given:
            number += 1
            name = f"{source.stem}-{number}"
        self._given.add(given)
        return given

"""`python -m vgan_fast.loaders.inspect DATA`: what a loader makes of files, as text and picture."""

import contextlib
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import Program, options_of
from vgan_fast.errors import UserError
from vgan_fast.settings import PRESETS, SYNTHETIC, Settings

# PyTorch and DALI are imported where they are used: processes that decode videos run this file's
# top once more.
if TYPE_CHECKING:
    from vgan_fast.loaders.clips import ClipLoader

OPTIONS = (
    *("frames", "size", "batch_size", "min_frames", "fps", "stride", "start"),
    *("crop", "flip", "brightness", "contrast", "saturation", "hue"),
    *("cache", "decoded", "workers", "device", "seed"),
)
LISTED = 40  # files printed one by one


@click.command(cls=Program)
@click.argument("data")
@options_of(Settings, PRESETS, OPTIONS)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="values of the options not given, as in training  [default: paper on a GPU, short on a "
    "CPU]; but batches of 8 and no cache",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="contact_sheet.png",
    show_default=True,
    help="contact sheet: a row for each clip",
)
@click.option(
    "--batches", type=click.IntRange(1, 100), default=1, show_default=True, help="batches on it"
)
def main(data: str, preset: str | None, out: Path, batches: int, **given) -> int:
    """Print what DATA holds and draw batches as the network would see them."""
    import torch

    from vgan_fast.data import open_data
    from vgan_fast.device import default_preset, resolved
    from vgan_fast.pictures import film_strip, write_picture

    if out.suffix != ".png":
        raise UserError(f"--out {out}: must end in .png")
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise UserError(
            f"--out {out}: lies in {data} and would be taken for a strip; choose another"
        )
    if data in SYNTHETIC:
        raise UserError("synthetic clips are no files; name some")
    # A cache would be filled for a handful of clips.
    given = {
        "batch_size": 8,
        "cache": "none",
        **{name: value for name, value in given.items() if value is not None},
    }
    preset = preset or default_preset(given.get("device", "auto"))
    settings = resolved(Settings.chosen(preset, {"data": data, **given}))
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.closing(open_data(settings, Path(scratch))) as loader,
    ):
        print(loader.summary)
        for line in _files(loader) + _spread(loader):
            print(line)
        clips, files = [], []
        for _ in range(batches):
            clips.append(loader.next_batch())
            files += loader.shown
        for path, reason in loader.skipped.items():
            print(f"skipped {path}: {reason}")
    write_picture(out, film_strip(torch.cat(clips).cpu().numpy()))
    size = f"{settings.frames} frames, {settings.size}x{settings.size}"
    print(f"{out}: {len(files)} clips of {size}, from above:")
    for file in files:
        print(f"  {file.source}")
    return 0


def _files(loader: "ClipLoader") -> list[str]:
    """A line for each file, or none where they are too many to read."""
    if len(loader.files) > LISTED:
        return []
    rows = [("file", "class", "frames", "a second")]
    for file in loader.files:
        rate = getattr(file, "rate", None)
        rows.append(
            (
                str(file.source),
                file.label or "-",
                str(file.length),
                f"{rate:.6g}" if rate else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _spread(loader: "ClipLoader") -> list[str]:
    """How lengths, rates and classes are spread."""
    lengths = sorted(file.length for file in loader.files)
    lines = [
        f"lengths: {lengths[0]} to {lengths[-1]} frames, median {statistics.median(lengths):g}"
    ]
    rates = Counter(getattr(file, "rate", None) for file in loader.files)
    known = sorted((rate, count) for rate, count in rates.items() if rate)
    if known:
        shown = ", ".join(f"{count} at {rate:.6g}" for rate, count in known)
        lines.append(
            f"frames a second: {shown}" + (f", {rates[None]} unknown" if rates[None] else "")
        )
    if loader.classes:
        counts = Counter(file.label for file in loader.files)
        lines.append("classes: " + ", ".join(f"{name} {counts[name]}" for name in loader.classes))
    return lines


if __name__ == "__main__":
    sys.exit(main())

"""`python -m vgan_fast.prepare VIDEOS --out SHARDS`: from raw video to shards to train from."""

import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import Program
from vgan_fast.errors import UserError

# The libraries of preparation are imported where they are used: processes that prepare videos run
# this file's top once more, and --help should not wait.

if TYPE_CHECKING:
    from vgan_fast.loaders.preparation.outcome import Outcome

LONGEST_STRIP = 65_500  # pixels, of a JPEG
LISTED = 40  # videos whose figures are printed one by one
SHARE = click.FloatRange(0, 1)


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of the set; one that an earlier run began is gone on with",
)
@click.option("--frames", type=click.IntRange(2, 512), default=32, help="of a clip, at most")
@click.option("--min-frames", type=click.IntRange(2, 512), default=16, help="of a clip, at least")
@click.option("--size", type=click.IntRange(8, 1024), default=128, help="side of a clip in pixels")
@click.option(
    "--skip", type=click.IntRange(0, 10_000), default=2, help="frames left out at a video's start"
)
@click.option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="resample videos to this rate by their time stamps  [default: every frame]",
)
@click.option(
    "--motion",
    type=click.Choice(["similarity", "homography", "none"]),
    default="similarity",
    help="of the camera, to be taken out: as the paper says, as its code does, or nothing",
)
@click.option(
    "--max-error",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="pixels of a clip by which a frame may fail to fit the camera's motion",
)
@click.option(
    "--min-overlap",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    help="share of the clip's picture that each frame must still show",
)
@click.option(
    "--scene-model", type=click.Path(path_type=Path), help="image classifier in ONNX, for scenes"
)
@click.option("--scene-labels", type=click.Path(path_type=Path), help="its labels, one a line")
@click.option("--scene", multiple=True, help="keep clips of this scene; may be repeated")
@click.option("--scene-threshold", type=SHARE, default=0.5, help="least probability of a scene")
@click.option(
    "--scene-side", type=click.IntRange(8, 1024), default=224, help="of its input, pixels"
)
@click.option(
    "--scene-mean",
    type=float,
    nargs=3,
    default=(0.485, 0.456, 0.406),
    help="of its input, RGB from 0 to 1; ImageNet's where not given",
)
@click.option("--scene-std", type=float, nargs=3, default=(0.229, 0.224, 0.225), help="as the mean")
@click.option(
    "--format",
    type=click.Choice(["tar", "npy"]),
    default="tar",
    help="WebDataset shards of JPEG strips, or uint8 arrays",
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, help="of JPEG")
@click.option("--shard-clips", type=click.IntRange(1), default=1000, help="clips in a shard")
@click.option("--validation", type=SHARE, default=0.1, help="share of videos held out")
@click.option("--test", type=SHARE, default=0.0, help="share of videos held out as well")
@click.option("--seed", type=click.IntRange(0), default=0, help="of the order, the split, matching")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="processes of this machine, or of the Ray cluster in RAY_ADDRESS",
)
@click.option(
    "--workers", type=click.IntRange(1), help="local processes  [default: one for each CPU]"
)
@click.option("--report/--no-report", default=True, help="draw SHARDS/report")
def main(videos: tuple[Path, ...], out: Path, **options) -> int:
    """Make clips of VIDEOS (folders, lists, files): cut at shots, stabilised, in shards."""
    from vgan_fast.loaders.preparation.apart import check_scenes
    from vgan_fast.loaders.preparation.assembly import Packing
    from vgan_fast.loaders.preparation.outcome import read_outcome
    from vgan_fast.loaders.preparation.report import write_report
    from vgan_fast.loaders.preparation.run import plan, run
    from vgan_fast.loaders.preparation.scenes import SceneFilter
    from vgan_fast.loaders.preparation.stabilise import Cutting
    from vgan_fast.loaders.preparation.video import Recipe

    _check(options)
    frames, size = options["frames"], options["size"]
    cutting = Cutting(
        frames=frames,
        min_frames=options["min_frames"],
        size=size,
        skip=options["skip"],
        motion=options["motion"],
        max_error=options["max_error"],
        min_overlap=options["min_overlap"],
    )
    scenes = None
    if options["scene_model"]:
        scenes = SceneFilter(
            model=options["scene_model"].absolute(),
            labels=options["scene_labels"].absolute(),
            keep=options["scene"],
            threshold=options["scene_threshold"],
            side=options["scene_side"],
            mean=options["scene_mean"],
            std=options["scene_std"],
        )
    recipe = Recipe(
        cutting, options["fps"], scenes, options["format"], options["quality"], options["seed"]
    )
    packing = Packing(
        format=options["format"],
        shard_clips=options["shard_clips"],
        validation=options["validation"],
        test=options["test"],
        seed=options["seed"],
        clip_shape=(frames, size, size, 3),
    )
    if scenes:
        check_scenes(scenes)  # what is wrong with it is better said here than by every process
    planned = plan(list(videos), out.absolute(), recipe, packing)
    print(f"{len(planned.videos)} videos below {planned.root}; set in {out}", flush=True)
    try:
        run(planned, options["engine"], options["workers"] or len(os.sched_getaffinity(0)))
        outcome = read_outcome(out)
        for line in _described(outcome):
            print(line)
        if not outcome.total.clips:
            raise UserError(f"{out}: not one clip has come of it; the reasons are above")
        if options["report"]:
            print(f"report: {write_report(planned)}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on with it", file=sys.stderr)
        return 130
    print(f"train: python -m vgan_fast.train --data {out}")
    return 0


def _check(options: dict) -> None:
    """Refuse values that do not go together.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in options.items():
        numbers = [x for x in (value if isinstance(value, tuple) else [value]) if type(x) is float]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"--{name.replace('_', '-')} {value}: give a finite number")
    frames, size = options["frames"], options["size"]
    if options["min_frames"] > frames:
        raise UserError(f"--min-frames {options['min_frames']}: is over --frames {frames}")
    if options["format"] == "tar" and frames * size > LONGEST_STRIP:
        raise UserError(
            f"--frames {frames} --size {size}: a strip of {frames * size} pixels is over JPEG's"
            f" {LONGEST_STRIP}; lower one, or use --format npy"
        )
    if options["validation"] + options["test"] >= 1:
        raise UserError("--validation and --test: leave nothing for training; lower one")
    if options["scene_model"] and not options["scene_labels"]:
        raise UserError("--scene-model: needs --scene-labels, a file with a label a line")
    if not options["scene_model"] and (options["scene_labels"] or options["scene"]):
        raise UserError("--scene and --scene-labels: need --scene-model, a classifier in ONNX")


def _described(outcome: "Outcome") -> list[str]:
    """What became of the videos, as lines: of each where they are few, and of all."""
    lines = []
    good = {name: sums for name, sums in outcome.videos.items() if not sums.failed}
    if len(good) <= LISTED:
        rows = [("video", "clips", "frames", "lost", "before", "after", "ratio", "motion")]
        rows += [
            (
                name,
                *map(str, (sums.clips, sums.frames, sums.lost)),
                *(f"{sums.mean_before:.2f}", f"{sums.mean_after:.2f}", f"{sums.ratio:.3f}"),
                f"{sums.mean_motion:.2f}",
            )
            for name, sums in sorted(good.items())
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines.append(
            "before, after: mean difference between a clip's first frame and the others, in grey"
            " levels; motion: of the camera, in pixels of the clip"
        )
    lines += [f"left out {name}: {why}" for name, why in list(outcome.failed.items())[:LISTED]]
    if len(outcome.failed) > LISTED:
        lines.append(f"and {len(outcome.failed) - LISTED} more: see rejected.jsonl")
    total = outcome.total
    lines.append(
        f"{total.clips} clips of {len(good)} videos: {_counted(outcome.splits)};"
        f" {total.frames} frames, {total.lost} in no clip"
    )
    if outcome.reasons:
        lines.append(f"rejected stretches: {_counted(outcome.reasons)}")
    return lines


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())

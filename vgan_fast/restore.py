"""`python -m vgan_fast.restore`: videos whose occluded pixels are filled in."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import Program, options_of
from vgan_fast.clip_output import WHOLE, Names, is_whole, output_options
from vgan_fast.errors import UserError
from vgan_fast.settings import PRESETS, Settings

# PyTorch is imported where it is used: processes that decode videos run this file's top once more.
if TYPE_CHECKING:
    import numpy as np

    from vgan_fast.loaders.whole import Clip

LEAST_SIZE = 8  # pixels of the short side
REGION = 0.4  # of the short side: 60 of the paper's 150 pixels
SHARE = 0.5  # of the pixels, or of the frames, as in the paper
OCCLUDED = (255, 0, 255)  # what a film strip shows there
MODEL = "stgconvnet"
EXPERIMENTS = ("4", "5")
TRAINING = (
    *("layers", "layer_rates", "steps", "langevin_steps", "step_size", "chains", "lr", "seed"),
    *("device", "backend", "precision"),
)

# What the options' help names.
_DEFAULTS = {
    name: asdict(Settings.chosen(name, {"model": MODEL, "experiment": EXPERIMENTS[0]}))
    for name in PRESETS
}


@dataclass(frozen=True)
class Occlusion:
    """What hides pixels: masks from files, or one of the artificial kinds, of known truth."""

    masks: tuple[Path, ...]
    kind: str | None
    share: float | None
    region: int | None
    seed: int | None

    def __post_init__(self):
        if self.share is not None and not 0 <= self.share <= 1:  # a NaN passes as an option
            raise UserError(f"--share {self.share}: must lie in [0, 1]")
        if bool(self.masks) == bool(self.kind):
            raise UserError("give either --mask or --occlude")
        for flag, value, kinds in (
            ("--share", self.share, ("salt-and-pepper", "frames")),
            ("--region", self.region, ("region",)),
            ("--mask-seed", self.seed, ("salt-and-pepper", "frames", "region")),
        ):
            if value is not None and self.kind not in kinds:
                raise UserError(f"{flag} is for --occlude {' or '.join(kinds)}")

    def of(self, number: int, clip: "Clip", start: int) -> "np.ndarray":
        """The mask bool (T, H, W) of clip `number`, counted in the order of the command line.

        Raises:
            UserError: it cannot be read or made, or it hides nothing or everything.
        """
        shape = clip.frames.shape[:3]
        if self.masks:
            from vgan_fast.restoration.occlusions import read_mask

            file = self.masks[number % len(self.masks)]
            mask = read_mask(file, shape=shape, filmed=clip.filmed, start=start)
            named = f"--mask {file}"
        else:
            mask = self._made(number, shape)
            named = f"--occlude {self.kind}"
        if not mask.any():
            raise UserError(
                f"{named}: occludes nothing of {clip.source} (black is visible, white is occluded)"
            )
        if mask.all():
            raise UserError(f"{named}: leaves nothing of {clip.source} visible; nothing to go on")
        return mask

    def _made(self, number: int, shape: tuple[int, int, int]) -> "np.ndarray":
        from vgan_fast.restoration import occlusions

        seed = (self.seed or 0) + number
        share = SHARE if self.share is None else self.share
        if self.kind == "salt-and-pepper":
            return occlusions.salt_and_pepper(shape, share, seed)
        if self.kind == "frames":
            return occlusions.missing_frames(shape, share, seed)
        least = min(shape[1:])
        side = round(REGION * least) if self.region is None else self.region
        if side > least:
            raise UserError(f"--region {side}: larger than frames of {shape[2]}x{shape[1]} pixels")
        return occlusions.moving_region(shape, side, seed)


@click.command(cls=Program)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--mask",
    "masks",
    type=click.Path(path_type=Path),
    multiple=True,
    help="white where the videos are occluded: a video or a folder of images, frame for frame, or "
    "one image for all frames; repeat it to give each video its own",
)
@click.option(
    "--occlude",
    type=click.Choice(["salt-and-pepper", "region", "frames"]),
    help="hide single pixels, a square in each frame or whole frames, and tell the error",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    help=f"of the pixels or frames that --occlude hides  [{SHARE}]",
)
@click.option(
    "--region",
    type=click.IntRange(1),
    help=f"side of the square in pixels  [{REGION} of the short side]",
)
@click.option("--mask-seed", type=click.IntRange(0), help="seed of --occlude  [0]")
@output_options("restored.mp4", of="video")
@click.option(
    "--strip",
    type=click.Path(path_type=Path, dir_okay=False),
    help="also write a .png film strip: the video, what is visible of it, it restored and, with "
    "--occlude, the absolute error",
)
@click.option(
    "--size",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="pixels that the short side is scaled down to; 0 leaves videos as filmed",
)
@click.option(
    "--frames", type=click.IntRange(2), default=32, show_default=True, help="frames restored"
)
@click.option(
    "--start", type=click.IntRange(0), default=0, show_default=True, help="the first of them"
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="draws of the occluded pixels, whose mean is written",
)
@click.option(
    "--experiment",
    type=click.Choice(EXPERIMENTS),
    default=EXPERIMENTS[0],
    show_default=True,
    help="the paper's network: for incomplete videos, or for what lies behind a moving object",
)
@options_of(Settings, _DEFAULTS, names=TRAINING)
def main(
    videos,
    masks,
    occlude,
    share,
    region,
    mask_seed,
    out,
    each,
    fps,
    strip,
    size,
    frames,
    start,
    samples,
    experiment,
    **training,
) -> int:
    """Learn what VIDEOS look like from their visible pixels, and fill the occluded ones in.

    Several videos of one size are learnt from together. Takes minutes to hours: see --steps.
    """
    import numpy as np

    from vgan_fast.device import configure
    from vgan_fast.loaders.whole import AS_FILMED, read_clips
    from vgan_fast.pictures import write_picture

    occlusion = Occlusion(masks, occlude, share, region, mask_seed)
    if len(masks) > 1 and len(masks) != len(videos):
        raise UserError(f"{len(masks)} --mask for {len(videos)} videos: give one, or one for each")
    if 0 < size < LEAST_SIZE:
        raise UserError(f"--size {size}: must be 0 or at least {LEAST_SIZE}")
    for number, video in enumerate(videos):
        if not video.is_file():
            reason = "is a folder; name the videos in it" if video.is_dir() else "no such file"
            raise UserError(f"{video}: {reason}")
        if video in videos[:number]:
            raise UserError(f"{video}: is named twice; name each video once")
    targets = _targets(out, each, videos)
    _refuse_outputs(targets, out, strip, (*videos, *masks))
    if size:  # What the settings refuse is said before videos are decoded.
        _settings(training, experiment, (1, frames, size, size))
    clips, broken = read_clips(
        videos,
        start=start,
        frames=frames,
        short_side=size or AS_FILMED,
        workers=len(os.sched_getaffinity(0)),
    )
    if not clips:
        file, reason = next(iter(broken.items()))
        others = f" (as are {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"{file}: {reason}; broken or too short{others}: name other videos")
    for file, reason in broken.items():
        print(f"skipped {file}: {reason}", file=sys.stderr)
    _refuse_sizes(clips)
    # By its place on the command line, whatever is broken before it.
    numbers = [videos.index(clip.source) for clip in clips]
    occluded = np.stack(
        [occlusion.of(number, clip, start) for number, clip in zip(numbers, clips, strict=True)]
    )
    given = np.stack([clip.frames for clip in clips])
    settings = _settings(training, experiment, given.shape)
    configure(settings)

    visible = np.where(occluded[..., None], np.uint8(0), given)
    draws = _recovered(visible, occluded, settings, samples)
    mean = draws.mean(axis=0)
    restored = mean.round().astype(np.uint8)

    if is_whole(out):
        write_picture(out, _picture(restored, out.suffix), fps)
    else:
        for number, clip in zip(numbers, restored, strict=True):
            write_picture(targets[number], _picture(clip[None], f".{each}"), fps)
    if strip is not None:
        rows = [given, np.where(occluded[..., None], np.uint8(OCCLUDED), given), restored]
        if occlude:
            rows.append(np.abs(mean - given).round().astype(np.uint8))
        _write_strip(strip, rows)
    if occlude:
        print(_errors(given, occluded, draws, mean))
    skipped = f", {len(broken)} skipped" if broken else ""
    print(f"{len(clips)} restored, {occluded.mean():.1%} of their pixels: {out}{skipped}")
    return 0


def _targets(out: Path, each: str, videos: tuple[Path, ...]) -> list[Path]:
    """Where the restored version of each video goes.

    Raises:
        UserError: when `--out` can be neither a picture nor a folder, or cannot hold all videos.
    """
    if is_whole(out):
        if len(videos) > WHOLE:
            raise UserError(f"{len(videos)} videos: one picture holds {WHOLE}; name a folder")
        return [out] * len(videos)
    names = Names()
    return [out / names.of(video, each) for video in videos]


def _refuse_outputs(
    targets: list[Path], out: Path, strip: Path | None, inputs: tuple[Path, ...]
) -> None:
    """Refuse outputs that cannot be written or that would replace or join what is read."""
    from vgan_fast.files import refuse_unwritable

    read = {file.resolve() for file in inputs}

    def is_read(file: Path) -> bool:
        return not read.isdisjoint((file.resolve(), file.resolve().parent))

    for file in targets:
        if is_read(file):
            raise UserError(f"{file}: is read or in a mask; choose another --out")
    refuse_unwritable(out)
    if strip is not None:
        if strip.suffix != ".png":
            raise UserError(f"--strip {strip}: must end in .png")
        if strip.resolve() in {file.resolve() for file in targets}:
            raise UserError(f"--strip {strip}: is --out as well; name another file")
        if is_read(strip):
            raise UserError(f"--strip {strip}: is read or in a mask; name another file")
        refuse_unwritable(strip, remedy="choose another --strip")


def _refuse_sizes(clips: list["Clip"]) -> None:
    """Refuse clips of several sizes."""
    sizes = {clip.frames.shape[1:3]: clip for clip in clips}
    if len(sizes) > 1:
        told = " and ".join(
            f"{clip.source} {width}x{height}" for (height, width), clip in [*sizes.items()][:2]
        )
        raise UserError(f"videos of one size are restored together: {told} pixels; run them apart")


def _settings(training: dict, experiment: str, shape: tuple[int, ...]) -> Settings:
    """The settings of a recovery of clips of that shape, (N, T, H, W, 3)."""
    from vgan_fast.device import default_preset, resolved

    given = {name: value for name, value in training.items() if value is not None}
    given |= {"model": MODEL, "experiment": experiment}
    given |= {"frames": shape[1], "size": min(shape[2:4])}
    return resolved(Settings.chosen(default_preset(given.get("device", "auto")), given))


def _recovered(
    visible: "np.ndarray", occluded: "np.ndarray", settings: Settings, samples: int
) -> "np.ndarray":
    """Draws float32 (S, N, T, H, W, 3) of the clips, with a bar that shows how far it is."""
    from tqdm import tqdm

    from vgan_fast.restoration.recovery import recover

    with tqdm(total=settings.steps, unit="step", dynamic_ncols=True) as bar:

        def report(step: int, values: dict[str, float]) -> None:
            bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
            bar.update(step - bar.n)

        return recover(visible, occluded, settings, samples=samples, report=report)


def _picture(clips: "np.ndarray", suffix: str) -> "np.ndarray":
    """Clips uint8 (N, T, H, W, 3) as they are written: one alone keeps its pixels as they are."""
    from vgan_fast.pictures import animated_grid, film_strip

    if suffix == ".png":
        return film_strip(clips)
    return clips[0] if len(clips) == 1 else animated_grid(clips)


def _write_strip(file: Path, rows: list["np.ndarray"]) -> None:
    """Write the rows, each uint8 (N, T, H, W, 3), one clip below the other."""
    import numpy as np

    from vgan_fast.pictures import film_strip, write_picture

    stacked = np.stack(rows, axis=1)
    picture = film_strip(stacked.reshape(-1, *stacked.shape[2:]))
    write_picture(file, picture, remedy="choose another --strip")


def _errors(
    given: "np.ndarray", occluded: "np.ndarray", draws: "np.ndarray", mean: "np.ndarray"
) -> str:
    """The mean absolute errors of the occluded pixels in words, all clips together."""
    import numpy as np

    from vgan_fast.baselines import interpolation

    truth = given[occluded].astype(np.float32)

    def error(clips: "np.ndarray") -> float:
        return float(np.abs(clips[occluded] - truth).mean())

    rival = np.stack([interpolation.recover(*pair) for pair in zip(given, occluded, strict=True)])
    return (
        "mean absolute error of an occluded pixel (0-255): "
        f"{np.mean([error(draw) for draw in draws]):.2f} one sample, "
        f"{error(mean):.2f} the mean of {len(draws)}, {error(rival):.2f} temporal interpolation"
    )


if __name__ == "__main__":
    sys.exit(main())

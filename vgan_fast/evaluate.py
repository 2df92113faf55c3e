"""`python -m vgan_fast.evaluate`: numbers on the clips of trained runs, with their protocol."""

import dataclasses
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import RunPath, SharedProgram
from vgan_fast.errors import UserError
from vgan_fast.settings import PRESETS, SYNTHETIC, UNKNOWN_DATA, Settings

# PyTorch is imported where it is used: processes that decode videos run this file's top once more.
if TYPE_CHECKING:
    from vgan_fast.distributed import Ranks

SHOWN = 4  # clips of each model in the animation; half of them in the strip
SHOWN_PAIRS = 6  # samples beside their nearest training clips


@click.command(cls=SharedProgram)
@click.argument("runs", nargs=-1, type=RunPath(file_okay=True))
@click.option(
    "--compare",
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of two-stream, one-stream and autoencoder runs to evaluate, in place of RUNS; "
    "those that it lacks are trained there, those cut short resumed",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="of training, with --compare")
@click.option("--steps", type=click.IntRange(1), help="of training, with --compare")
@click.option(
    "--data",
    help="real clips, as of vgan_fast.train; those of its split train are taken for what the runs "
    "were trained on  [default: the runs' --data]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "held-out"]),
    help="which of them; held-out is of synthetic clips, validation and test are of a prepared set "
    " [default: held-out, test or validation where there are some, else train]",
)
@click.option(
    "--count",
    type=click.IntRange(4, 1_000_000),
    default=512,
    show_default=True,
    help="clips of each set: samples, reference, other real clips; lowered where the data have "
    "fewer",
)
@click.option(
    "--training-clips",
    type=click.IntRange(2, 1_000_000),
    default=1024,
    show_default=True,
    help="training clips looked through for copies",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="of codes, of resampling, and of training with --compare",
)
@click.option(
    "--detector",
    type=click.Choice(["random", "discriminator"]),
    help="seeded random 3D convolutions, or the run's own discriminator (one run only)  [default: "
    "random]",
)
@click.option(
    "--detector-run",
    type=RunPath(),
    help="detect with the discriminator of this run",
)
@click.option(
    "--detector-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="detect with a TorchScript file: clips (N, 3, T, H, W) in [-1, 1] to features (N, D), or "
    "to a tuple of features and class logits (N, C), which give an Inception score",
)
@click.option("--trust", help="SHA-256 of --detector-file: it carries code, which will be run")
@click.option(
    "--detector-size",
    type=click.IntRange(1, 4096),
    help="side in pixels that frames are scaled to for --detector-file  [default: as they are]",
)
@click.option(
    "--resamples",
    type=click.IntRange(2, 10_000),
    default=50,
    show_default=True,
    help="of the bootstrap of each distance",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="result .json; the table (.md), samples side by side (.png, .gif) and samples above their "
    "nearest training clips (-nearest.png) go beside it  [default: evaluation.json, with --compare "
    "FOLDER/comparison.json]",
)
@click.option(
    "--decoded",
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of decoded videos  [default: frames in the first run]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def main(runs: tuple[Path, ...], compare: Path | None, out: Path | None, **given) -> int:
    """Measure RUNS of vgan_fast.train against real clips.

    Fréchet distance with its real-against-real floor, Inception score where the detector has
    classes, which of two runs looks more real to the detector, motion, flicker, masks, and copies
    of training clips; each with the protocol that it hangs on. RUNS may be .t7 files of videogan's
    generators; --data is then needed. They may also be stored results (.json): of equal protocols
    they are printed as one table, of others refused.

    With 512 clips of 32 frames of 32x32 three runs take about a minute on one CPU core. --compare
    trains first: 500 steps of the short preset take five minutes a model there, or some more.
    """
    if bool(runs) == (compare is not None):
        raise UserError("give runs to evaluate, or --compare FOLDER, and not both")
    for name in ("preset", "steps"):
        if compare is None and given[name] is not None:
            raise UserError(f"--{name} is for --compare")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json")
    stored = [run for run in runs if run.is_file()]
    if stored:
        if len(stored) < len(runs):
            raise UserError(f"{stored[0]}: is a file; give folders of runs, or stored results only")
        return _print_stored(stored)
    from vgan_fast.distributed import joined

    with joined() as ranks:
        return _evaluate(ranks, list(runs), compare, out, **given)


def _print_stored(files: list[Path]) -> int:
    from vgan_fast.evaluation.report import as_tables
    from vgan_fast.evaluation.result import Result, joined

    print(as_tables(joined({str(file): Result.load(file) for file in files})))
    return 0


def _evaluate(
    ranks: "Ranks",
    runs: list[Path],
    compare: Path | None,
    out: Path | None,
    *,
    preset: str | None,
    steps: int | None,
    data: str | None,
    split: str | None,
    count: int,
    training_clips: int,
    seed: int,
    detector: str | None,
    detector_run: Path | None,
    detector_file: Path | None,
    trust: str | None,
    detector_size: int | None,
    resamples: int,
    decoded: Path | None,
    device: str,
) -> int:
    import torch

    from vgan_fast.device import default_preset, find_device
    from vgan_fast.distributed import ALONE
    from vgan_fast.evaluation.measure import REAL, Evaluation
    from vgan_fast.evaluation.real import RealClips, choose_split
    from vgan_fast.evaluation.report import as_tables, pairs, side_by_side
    from vgan_fast.files import refuse_unwritable, written_whole
    from vgan_fast.pictures import write_picture
    from vgan_fast.sampling import Sampler

    if compare is not None and ranks is not ALONE:
        raise UserError("--compare: trains; train its runs first and give them, or leave torchrun")
    place = find_device(device)
    ranks.use_device(place.type)
    if sum(o is not None for o in (detector, detector_run, detector_file)) > 1:
        raise UserError("--detector, --detector-run and --detector-file: give one of them")
    if detector_file is None and (trust is not None or detector_size is not None):
        raise UserError("--trust and --detector-size are for --detector-file")
    if detector == "discriminator" and (compare is not None or len(runs) > 1):
        raise UserError(
            "--detector discriminator: numbers of different discriminators cannot be compared; "
            "name one for all with --detector-run"
        )
    if detector == "discriminator":
        detector_run = runs[0]
    # Before anything is trained: a file that is not trusted, a run that is not there.
    seeing = _detector(detector_run, detector_file, trust, detector_size, place)

    if compare is not None:
        from vgan_fast.evaluation.training import trained

        settings = {"data": data or "synthetic", "seed": seed, "device": device, "steps": steps}
        decoded = decoded or compare / "frames"
        if settings["data"] not in SYNTHETIC:  # Videos are decoded once for all.
            settings["decoded"] = str(decoded)
        settings = {name: value for name, value in settings.items() if value is not None}
        preset = preset or default_preset(device)
        to_come = Settings.chosen(preset, settings)
        seeing.check(to_come.frames, to_come.size)
        named = trained(compare, preset, settings)
        out = out or compare / "comparison.json"
    else:
        named = _named(runs)
        out = out or Path("evaluation.json")
    refuse_unwritable(out)
    samplers = {name: Sampler(run, place) for name, run in named.items()}
    first = next(iter(samplers.values())).settings
    clip = first.frames, first.size
    for name, sampler in samplers.items():
        own = sampler.settings
        if data is None and own.data == UNKNOWN_DATA:
            raise UserError(
                f"{named[name]}: does not say what it was trained on; name clips by --data"
            )
        if own.model == "future":
            raise UserError(
                f"{named[name]}: a run of --model future goes on from given frames; it cannot be "
                "evaluated beside models that make clips of their own"
            )
        if (own.frames, own.size) != clip:
            raise UserError(
                f"{named[name]}: makes {own.frames} frames of {own.size}x{own.size}, the first run "
                f"{clip[0]} of {clip[1]}x{clip[1]}; evaluate them apart"
            )
        if (own.stride, own.fps) != (first.stride, first.fps):
            raise UserError(
                f"{named[name]}: was trained with another --stride or --fps than the first run; "
                "evaluate them apart"
            )
        if own.data in SYNTHETIC and own.seed != first.seed and ranks.first:
            print(f"{name}: of another seed; copies are looked for among the first run's clips")
        if data is None and own.data != first.data:
            raise UserError(
                f"{named[name]}: was trained on {own.data}, the first run on {first.data}; choose "
                "with --data"
            )
    seeing.check(*clip)

    folder = decoded or next(iter(named.values())) / "frames"
    settings = dataclasses.replace(
        first, data=data or first.data, decoded=str(folder), device=place.type
    )
    split = split or choose_split(settings.data)
    with ranks.first_before_others("real"):  # which decodes them
        real = RealClips(settings, split, folder)
        training = real if split == "train" else RealClips(settings, "train", folder)
    evaluation = Evaluation(
        real,
        training,
        seeing,
        data=settings.data,
        clip=clip,
        count=count,
        training_count=training_clips,
        seed=seed,
        resamples=resamples,
        ranks=ranks,
    )
    seen = {name: evaluation.look_at(sampler) for name, sampler in samplers.items()}
    if not ranks.first:
        return 0
    if evaluation.shortened:
        print(f"only {real.count} real clips: sets of {evaluation.protocol.count}, not {count}")
    if evaluation.protocol.count < evaluation.protocol.dimensions:
        print(
            f"{evaluation.protocol.count} clips are fewer than the detector's "
            f"{evaluation.protocol.dimensions} features: Fréchet distances are too large, by "
            "about what the floor shows"
        )
    made_by = {
        "command": shlex.join(["python", "-m", "vgan_fast.evaluate", *sys.argv[1:]]),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    near = {name: evaluation.nearest_to(of) for name, of in seen.items()}
    checkpoints = {name: sampler.checkpoint for name, sampler in samplers.items()}
    result = dataclasses.replace(evaluation.result(seen, near, checkpoints), made_by=made_by)
    tables = as_tables(result)
    sets = {**seen, REAL: evaluation.others}
    strip, animation = side_by_side({name: of.clips(slice(SHOWN)) for name, of in sets.items()})
    copied = []
    for name, of in seen.items():
        pixels = near[name]["pixels"]
        first_ones = pixels.order[:SHOWN_PAIRS]
        copies = evaluation.training.clips(pixels.clips[first_ones])
        copied.append(pairs(of.clips(first_ones), copies))

    write_picture(out.with_suffix(".png"), strip)
    write_picture(out.with_suffix(".gif"), animation)
    for name, picture in zip(named, copied, strict=True):
        write_picture(out.with_name(f"{out.stem}-nearest-{name}.png"), picture)
    with written_whole(out.with_suffix(".md")) as part:
        part.write_text(tables, encoding="utf-8")
    result.save(out)  # Last: where it is, so is the rest.
    print(tables)
    print(f"stored: {out}, with its protocol; table and pictures beside it")
    return 0


def _detector(run, file, trust, size, device):
    from vgan_fast.evaluation.detectors import (
        discriminator_of,
        random_detector,
        torchscript_detector,
    )

    if file is not None:
        return torchscript_detector(file, trust, size, device)
    return random_detector(device) if run is None else discriminator_of(run, device)


def _named(runs: list[Path]) -> dict[str, Path]:
    """Runs by short names: a checkpoint's includes its run's, and a repeated one gets a number."""
    named: dict[str, Path] = {}
    for run in (run.resolve() for run in runs):
        name = run.name if not run.name.startswith("step-") else f"{run.parents[1].name}-{run.name}"
        number, free = 1, name
        while free in named or free == "real":
            number += 1
            free = f"{name}-{number}"
        named[free] = run
    return named


if __name__ == "__main__":
    sys.exit(main())

"""`python -m vgan_fast.classify`: action recognition on what a discriminator has learnt."""

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import Program, RunPath, options_of
from vgan_fast.errors import UserError
from vgan_fast.transfer.options import PRESETS, Options

# PyTorch and DALI are imported where they are used: processes that decode videos run this file's
# top once more, and --help should not wait.
if TYPE_CHECKING:
    from vgan_fast.models import Discriminator
    from vgan_fast.settings import Settings
    from vgan_fast.transfer.data import Experiment
    from vgan_fast.transfer.results import Score

RESULTS, TABLE, PICTURE = "results.json", "table.md", "transfer.png"


@click.command(cls=Program)
@click.argument("run", type=RunPath())
@click.option(
    "--data",
    required=True,
    help="videos with classes: a folder with one folder for each class, a list with a number at "
    "the end of each line, a training list of UCF101 with classInd.txt beside it (or the folder of "
    "its lists), or 'synthetic-motions'",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="the test videos, of the same kinds  [default: UCF101's own, or a share of --data's "
    "videos, drawn anew for each seed]",
)
@click.option(
    "--split",
    type=click.Choice(["1", "2", "3", "all"]),
    help="which of UCF101's splits, or the mean of all  [default: that of the list named, or 1]",
)
@options_of(Options, PRESETS)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="values of the options not given: the paper's, or a run of minutes at 32x32 pixels "
    "[default: paper on a GPU, short on a CPU]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("transfer"),
    show_default=True,
    help=f"folder to make, with {RESULTS}, {TABLE} and {PICTURE}",
)
@click.option(
    "--decoded",
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of decoded videos; runs may share one  [default: RUN/frames]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def main(run, data, test, split, preset, out, decoded, device, **given) -> int:
    """Tell actions apart with the discriminator in RUN.

    RUN is a run of vgan_fast.train, one of its checkpoints, or a .t7 file of the original.

    Compares fine-tuning it with a logistic regression on its features and with training from
    random weights, by the share of labels used (section 4.3 and figure 4 of the paper).

    Trains two networks for each seed and fraction. Time: 9,000 steps of 32 clips at 16x16 with
    width 16, and the regressions, took 110 s of one CPU core; a clip of 32x32 with width 32 and
    32 frames has 34 times the multiplications.
    """
    _refuse_without_extra()
    from vgan_fast.checkpoint import find_checkpoint, is_checkpoint
    from vgan_fast.classifier_step import load_discriminator
    from vgan_fast.device import configure, default_preset
    from vgan_fast.files import refuse_unwritable, written_whole
    from vgan_fast.settings import Settings
    from vgan_fast.transfer.results import Results

    preset = preset or default_preset(device)
    given = {name: value for name, value in given.items() if value is not None}
    options = Options(**{**PRESETS[preset], **given})
    if out.exists():
        raise UserError(f"--out {out}: is there already; name a folder to make")
    refuse_unwritable(out)  # better said before hours of training
    checkpoint = find_checkpoint(run)
    of_run = Settings.load(checkpoint / "settings.json")
    settings = _of_classifiers(of_run, options, device)
    configure(settings)
    discriminator = load_discriminator(checkpoint, settings)
    decoded = decoded or (run.parent.parent if is_checkpoint(run) else run) / "frames"
    scores: list[Score] = []
    experiments = _experiments(data, test, split, options, settings, decoded)
    for experiment in experiments:
        scores += _compare(experiment, options, settings, discriminator)
    results = Results(scores, experiments[0].videos.classes, _chance(experiments))

    with written_whole(out, folder=True) as folder:
        results.draw(folder / PICTURE)
        (folder / TABLE).write_text(f"{results.table()}\n\n{results.verdict()}\n", encoding="utf-8")
        record = {
            "command": shlex.join(["python", "-m", "vgan_fast.classify", *sys.argv[1:]]),
            "checkpoint": str(checkpoint),
            "options": asdict(options),
            "settings": asdict(settings),
            **results.record(),
        }
        (folder / RESULTS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(results.table(), results.verdict(), sep="\n\n")
    print(f"chance {results.chance:.1%}; picture and all numbers: {out}")
    return 0


def _refuse_without_extra() -> None:
    """Say what is missing before anything is computed."""
    import importlib.util

    for name, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{package} is not installed: pip install 'vgan_fast[experiments]'")


def _of_classifiers(of_run: "Settings", options: Options, device: str) -> "Settings":
    """The run's sizes with the training of a classifier, resolved for this machine."""
    from vgan_fast.device import resolved

    return resolved(
        replace(
            of_run,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            optimizer="adam",
            backend="auto" if of_run.backend == "fused" else of_run.backend,
            device=device,
            precision="auto",
            graph=None,
        )
    )


def _experiments(
    data: str,
    test: Path | None,
    split: str | None,
    options: Options,
    settings: "Settings",
    decoded: Path,
) -> list["Experiment"]:
    from vgan_fast.settings import SYNTHETIC
    from vgan_fast.transfer.data import (
        drawn_test,
        find_splits,
        given_test,
        read_videos,
        synthetic_experiment,
    )

    if data == "synthetic-motions":
        if test is not None or split is not None:
            raise UserError(f"--data {data}: has test clips of its own; leave out --test, --split")
        return [synthetic_experiment(settings, options.videos, options.test_videos)]
    if data in SYNTHETIC:
        raise UserError(f"--data {data}: has no classes; synthetic-motions has")
    made = []
    for number, (train, tested) in enumerate(find_splits(Path(data), test, split), start=1):
        videos = read_videos(train, settings, options.clips_per_video, decoded)
        if tested is None:
            made.append(drawn_test(videos, options.test_share))
        else:
            others = read_videos(tested, settings, options.clips_per_video, decoded)
            made.append(given_test(videos, others, str(number) if split == "all" else ""))
    return made


def _chance(experiments: list["Experiment"]) -> float:
    """Share told right by always naming the commonest class of the first seed's test videos."""
    import numpy as np

    shares = []
    for experiment in experiments:
        _, test = experiment.divide(0)
        counts = np.bincount(experiment.videos.labels[test])
        shares.append(counts.max() / counts.sum())
    return float(np.mean(shares))


def _compare(
    experiment: "Experiment",
    options: Options,
    settings: "Settings",
    discriminator: "Discriminator",
) -> list["Score"]:
    """Every method at every fraction and seed."""
    from tqdm import tqdm

    from vgan_fast.transfer.data import labelled_part
    from vgan_fast.transfer.methods import (
        frozen_features,
        regressed_probabilities,
        trained_probabilities,
    )
    from vgan_fast.transfer.results import Score

    videos = experiment.videos
    features = None
    if "logistic" in options.method_names:
        features = frozen_features(videos, discriminator, settings)
    trainings = len({"fine-tuned", "random"} & set(options.method_names))
    total = options.seeds * len(options.shares) * trainings * options.steps
    scores = []
    with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
        for seed in range(options.seeds):
            train, test = experiment.divide(seed)
            for share in options.shares:
                part = labelled_part(videos.labels, train, float(share), seed)
                for method in options.method_names:
                    bar.set_description(f"seed {seed}, {share} of the labels, {method}")
                    if method == "logistic":
                        told = regressed_probabilities(features, videos, part, test)
                    else:
                        told = trained_probabilities(
                            videos,
                            part,
                            test,
                            replace(settings, seed=seed),
                            discriminator if method == "fine-tuned" else None,
                            bar.update,
                        )
                    score = Score.of(
                        told,
                        videos.labels[test],
                        split=experiment.name,
                        seed=seed,
                        method=method,
                        fraction=share,
                        videos=len(part),
                    )
                    bar.set_postfix_str(f"{score.video:.1%} of the test videos")
                    scores.append(score)
    return scores


if __name__ == "__main__":
    sys.exit(main())

"""The training loop: progress, logging, pictures, checkpoints and signals, whatever the task."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vgan_fast.checkpoint import save_checkpoint
from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished
from vgan_fast.pictures import as_frames, encode, film_strip, stream_rows, write_picture
from vgan_fast.settings import Settings
from vgan_fast.skipping import Skipping

ROWS = 4  # samples in a picture


class TrainingStep(Protocol):
    """What the loop asks of a task."""

    networks: dict[str, nn.Module]
    remedy: str
    read_every: int
    skipping: Skipping | None

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Train on one batch and return scalars on the device, good until the next call."""

    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips in [-1, 1] by stream, the same latents at every call."""

    def state_dict(self) -> dict:
        """All but the weights that the next step depends on."""


class ClipSource(Protocol):
    """What the loop asks of a loader."""

    summary: str
    skipped: Mapping[Path, str]
    fingerprint: str
    position: int

    def next_batch(self) -> Tensor:
        """The next clips: uint8 (N, T, H, W, 3) on the step's device."""

    def close(self) -> None:
        """Let go of files and processes."""


def train(
    step: TrainingStep,
    clips: ClipSource,
    settings: Settings,
    run: Path,
    finished: int = 0,
    ranks: Ranks = ALONE,
) -> int | None:
    """Run steps `finished` + 1 to `settings.steps`.

    Writes into `run`: `checkpoints/`, `pictures/` (film strip PNG and GIF of the streams) and
    TensorBoard's event file. Ctrl-C and SIGTERM end the loop after the step at hand, in all
    processes after the same one.

    Args:
        step: the task.
        clips: where batches come from.
        settings: steps, and how often to save and to sample.
        run: folder of the run.
        finished: steps done before.
        ranks: the processes that share each batch; the first one writes and shows progress.

    Returns:
        The signal that ended the loop early, None when all steps were done. Either way the last
        finished step is saved.

    Raises:
        UserError: when a loss is not finite, or with `--on-nan skip` when `settings.skip_limit`
            steps were skipped one after the other; when an output cannot be written.
    """
    if ranks.first:
        remove_unfinished(run / "pictures", "step-*")
    pace = _Pace(finished)
    bar = tqdm(
        total=settings.steps,
        initial=finished,
        unit="step",
        dynamic_ncols=True,
        disable=not ranks.first,
    )
    events = _event_writer(run, finished) if ranks.first else contextlib.nullcontext()
    with bar, _Signals() as signals, events as writer:

        def save(done: int) -> None:
            _refuse_broken_weights(step, done)
            if not ranks.first:
                return
            with explained(run):
                writer.flush()  # A run that is killed later has its history up to here.
            state = {
                "task": step.state_dict(),
                "position": clips.position,
                "data": clips.fingerprint,
            }
            save_checkpoint(run, done, step.networks, state, settings)

        def picture(done: int) -> None:
            if not ranks.first:
                return
            streams = step.sample(ROWS)
            animation = stream_rows(streams, ROWS)
            write_picture(run / "pictures" / f"step-{done:08d}.gif", animation)
            with explained(run):
                _add_animation(writer, "samples", animation, done)
                writer.flush()
            write_picture(strip_of(run, done), film_strip(as_frames(streams["video"])))

        def is_sampled(done: int) -> bool:
            return done % settings.sample_every == 0 or done == settings.steps

        done, caught = finished, 0
        if done and is_sampled(done) and not strip_of(run, done).exists():
            picture(done)  # Which a run that was killed after its checkpoint still owes.
        while done < settings.steps and not caught:
            losses = step(pace.fetch(clips))
            done += 1
            bar.update()
            if done % step.read_every == 0 or done == settings.steps:
                means = ranks.means(losses)
                try:
                    with explained(run):
                        _report(step, means, pace, bar, writer, done, settings)
                except UserError:
                    if step.skipping:  # What was skipped has left the weights good.
                        save(done)
                    raise
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                pace.pause(save, done)  # Before the picture, which may fail.
            if is_sampled(done):
                pace.pause(picture, done)
            caught = ranks.largest(signals.caught or 0)
        save(done)
    return caught or None


def strip_of(run: Path, step: int) -> Path:
    """The film strip of the samples after that many steps: the last that is written of them."""
    return run / "pictures" / f"step-{step:08d}.png"


@contextlib.contextmanager
def _event_writer(run: Path, finished: int) -> Iterator[SummaryWriter]:
    with explained(run):
        # Drops what a killed run wrote beyond its last checkpoint.
        writer = SummaryWriter(str(run), purge_step=finished + 1)
    try:
        yield writer
    finally:
        with explained(run):
            writer.close()


class _Pace:
    """Rate of steps, and share of the time spent waiting for data, since they were last read."""

    def __init__(self, done: int):
        self._begin(done)

    def _begin(self, done: int) -> None:
        self._since, self._done, self._waited = time.perf_counter(), done, 0.0

    def fetch(self, clips: ClipSource) -> Tensor:
        """The next batch; the wait is counted."""
        before = time.perf_counter()
        frames = clips.next_batch()
        self._waited += time.perf_counter() - before
        return frames

    def pause(self, action: Callable[[int], None], done: int) -> None:
        """Do what is no part of training; its time is left out."""
        before = time.perf_counter()
        action(done)
        self._since += time.perf_counter() - before

    def read(self, done: int) -> tuple[float, float]:
        """Steps per second and share of waiting; both start anew."""
        elapsed = time.perf_counter() - self._since
        rates = (done - self._done) / elapsed, self._waited / elapsed
        self._begin(done)
        return rates


def _report(
    step: TrainingStep,
    losses: dict[str, Tensor],
    pace: _Pace,
    bar: tqdm,
    writer: SummaryWriter | None,
    done: int,
    settings: Settings,
) -> None:
    values = {name: float(value) for name, value in losses.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    skipped = ""
    if step.skipping:
        longest, total = int(step.skipping.longest), int(step.skipping.total)
        if longest >= settings.skip_limit:
            raise UserError(
                f"{longest} steps one after the other were skipped by step {done}, their losses or "
                f"weights not finite: {step.remedy}, or resume the run with a larger --skip-limit"
            )
        skipped = f", {total} skipped" if total else ""
        values = {name: value for name, value in values.items() if name not in broken}
    elif broken:
        raise UserError(
            f"the loss '{broken[0]}' is not finite at step {done}: {step.remedy}, or pass over "
            "such steps by --on-nan skip"
        )
    if writer is None:
        return
    if step.skipping:
        writer.add_scalar("skipped", total, done)
    steps_per_second, wait = pace.read(done)
    rates = {"clips/s": steps_per_second * settings.batch_size, "data wait": wait}
    bar.set_postfix_str(
        " ".join(f"{name} {value:.3f}" for name, value in values.items())
        + f" | {rates['clips/s']:.1f} clips/s, data wait {wait:.0%}{skipped}"
    )
    for name, value in values.items():
        writer.add_scalar(f"loss/{name}", value, done)
    for name, value in rates.items():
        writer.add_scalar(f"speed/{name}", value, done)


def _refuse_broken_weights(step: TrainingStep, done: int) -> None:
    """Keep the last good checkpoint: a loss may be read later than it broke."""
    for name, network in step.networks.items():
        if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
            raise UserError(
                f"the weights of the {name} are not finite at step {done}: {step.remedy}"
            )


def _add_animation(writer: SummaryWriter, tag: str, animation: np.ndarray, done: int) -> None:
    # TensorBoard plays a GIF where it expects an image; add_video would want a further library.
    image = Summary.Image(
        height=animation.shape[1],
        width=animation.shape[2],
        colorspace=3,
        encoded_image_string=encode(animation, ".gif"),
    )
    value = Summary.Value(tag=tag, image=image)
    writer.file_writer.add_summary(Summary(value=[value]), done)


class _Signals:
    """Remember the first Ctrl-C or SIGTERM; a second one acts as if unhandled."""

    caught: int | None = None

    def __enter__(self):
        self._previous = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number, _frame):
        self.caught = number
        self.__exit__()

"""Training from JPEG strips on disk: the loop that people run today, and ours."""

import contextlib
import dataclasses
import time
from functools import partial

from benchmarks import media
from benchmarks.bench_loaders import Batches, Source, ours, theirs
from benchmarks.measure import Contender, Contest, Device, Prepared
from benchmarks.presets import Networks, Preset
from benchmarks.rivals import REFERENCE, default
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.settings import Settings

ROUNDS = 4


def training(
    name: str,
    settings: Settings,
    batches: Batches,
    source: Source,
    waits: bool,
    steps: int,
    device: Device,
) -> Contender:
    """Fetch and train; `waits` for the device after every step, as reading a loss does."""

    def build(stack: contextlib.ExitStack) -> Prepared:
        resolved_settings = resolved(settings)
        configure(resolved_settings)
        step = GANStep(resolved_settings)
        next_batch = batches(source.data, stack)
        info: dict[str, float] = {"clips": steps * settings.batch_size}
        spent: list[tuple[float, float]] = []

        def work() -> None:
            begin, waiting = time.perf_counter(), 0.0
            for _ in range(steps):
                before = time.perf_counter()
                frames = next_batch()
                waiting += time.perf_counter() - before
                losses = step(frames)
                if waits:
                    float(losses["g"])
            device.wait()
            spent.append((waiting, time.perf_counter() - begin))
            waiting, everything = map(sum, zip(*spent[-ROUNDS:], strict=True))
            info["waiting"] = waiting / everything

        return Prepared(work, info)

    return Contender(name, build, resolved(settings).precision)


def contest(networks: Networks, preset: Preset, device: Device) -> Contest:
    """All ways on networks of one size."""
    files = dataclasses.replace(
        preset.files,
        frames=networks.shape.frames,
        size=networks.shape.size,
        batch=networks.batch,
    )
    source = Source(partial(media.write_strips, files=files), False, files)
    best = default(device)
    today = theirs(media.strip_by_pillow, 1, files, device)
    of = preset.steps_of_files, device
    return Contest(
        "end to end",
        f"strips, {networks}",
        [
            training(
                "today's loop", REFERENCE.settings(networks, device), today, source, True, *of
            ),
            *(
                training(
                    f"ours, --cache {cache}",
                    best.settings(networks, device),
                    ours(files, device, cache),
                    source,
                    False,
                    *of,
                )
                for cache in ("none", "auto")
            ),
        ],
        ROUNDS,
        1,
        in_turns=False,
        inspected=False,
    )


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Each of the trained networks."""
    return [contest(networks, preset, device) for networks in preset.trained]


def test_end_to_end(contest, contender, measured):
    measured(contest, contender)

"""Sampling: videos from latents, in evaluation mode, by every rival."""

import torch
from torch import Tensor

from benchmarks.measure import Contender, Contest, Device, Prepared, WrongResultError
from benchmarks.presets import Networks, Preset
from benchmarks.rivals import Rival, rivals
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import build_generator, sample_streams
from vgan_fast.graph import WARM_UP, CudaGraph, Replayed
from vgan_fast.kernels.cost import generator_forward
from vgan_fast.settings import Settings

TOLERANCE = 0.02  # relative error of the videos: bf16 keeps 8 bits
AUTOCAST = {"bf16": torch.bfloat16}


def contest(networks: Networks, preset: Preset, device: Device) -> Contest:
    """All rivals on networks of one size."""
    torch.manual_seed(1)
    latents = torch.randn(networks.batch, networks.shape.latent, device=device.device)
    # One training pass, so that running statistics are those of the weights.
    start = build_generator(Settings(**_sizes(networks), backend="reference", device="cpu"))
    expected: list[Tensor] = []

    def contender(rival: Rival) -> Contender:
        def build(_) -> Prepared:
            settings = resolved(rival.settings(networks, device))
            configure(settings)
            generator = build_generator(settings).to(device.device)
            if not expected:
                start.to(device.device)(latents)
            generator.load_state_dict(start.state_dict())
            rival.compile(generator, preset.compiler)
            dtype = AUTOCAST.get(settings.precision)

            def sample(latents: Tensor) -> dict[str, Tensor]:
                with torch.autocast(device.device.type, dtype=dtype, enabled=dtype is not None):
                    return sample_streams(generator, latents, streams=False)

            if rival.graph and device.gpu:
                sample = Replayed(sample, CudaGraph(device.device))

            def work() -> Tensor:
                configure(settings)
                torch.compiler.cudagraph_mark_step_begin()
                return sample(latents)["video"]

            for _ in range(WARM_UP + 1 if rival.graph else 1):
                video = work()
            if not expected:
                expected.append(video.clone())
            error = float((video - expected[0]).norm() / expected[0].norm())
            if not error < TOLERANCE:
                raise WrongResultError(f"the videos are off by {error:.1%}")
            return Prepared(work, {"clips": networks.batch})

        return Contender(rival.name, build, rival.precision, rival.about)

    return Contest(
        "generation",
        str(networks),
        [contender(rival) for rival in rivals(device)],
        preset.rounds,
        min(preset.warm_up, 2),
        # With statistics known, norm and activation ride in the products.
        counted=[
            (call.flops, call.bytes)
            for call in generator_forward(networks.shape, networks.batch)
            if call.product
        ],
    )


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Each of the networks that are sampled."""
    return [contest(networks, preset, device) for networks in preset.generated]


def _sizes(networks: Networks) -> dict[str, int]:
    shape = networks.shape
    return {
        "frames": shape.frames,
        "size": shape.size,
        "width": shape.width,
        "batch_size": networks.batch,
    }


def test_generation(contest, contender, measured):
    measured(contest, contender)

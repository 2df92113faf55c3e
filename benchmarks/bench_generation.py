"""Sampling: videos from latents, in evaluation mode, by every rival."""

from functools import cache

import torch
from torch import Tensor

from benchmarks.measure import Contender, Contest, Device, Prepared, WrongResultError
from benchmarks.presets import Networks, Preset
from benchmarks.rivals import Rival, rivals
from vgan_fast.device import configure, resolved
from vgan_fast.graph import WARM_UP, CudaGraph, Replayed
from vgan_fast.kernels.cost import generator_forward
from vgan_fast.networks import build_generator
from vgan_fast.sampling import sample_streams, with_own_statistics
from vgan_fast.settings import Settings

TOLERANCE = 0.05  # relative error of the videos: bf16 keeps 8 bits, layer by layer
WIDER = 30.0  # an untrained head's logits are 0.03 wide, and its masks all alike
AUTOCAST = {"bf16": torch.bfloat16}


def contest(networks: Networks, preset: Preset, device: Device) -> Contest:
    """All rivals on networks of one size."""
    torch.manual_seed(1)
    latents = torch.randn(networks.batch, networks.shape.latent, device=device.device)
    expected: list[Tensor] = []

    @cache
    def start() -> dict[str, Tensor]:
        """Weights whose masks and colours vary, and their own running statistics."""
        settings = Settings(**_sizes(networks), backend="reference", device="cpu")
        generator = build_generator(settings)
        with torch.no_grad():
            for head in (generator.head, generator.background_head):
                head.weight.mul_(WIDER)
        return with_own_statistics(generator).state_dict()

    def contender(rival: Rival) -> Contender:
        def build(_) -> Prepared:
            settings = resolved(rival.settings(networks, device))
            configure(settings)
            generator = build_generator(settings).to(device.device)
            generator.load_state_dict(start())
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

            for _ in range(WARM_UP + 1):  # a graph is captured at the last
                video = work().cpu()
            if not expected:
                expected.append(video.clone())
            error = float((video - expected[0]).norm() / expected[0].norm())
            if not error < TOLERANCE:
                raise WrongResultError(f"the videos are off by {error:.1%}")
            if isinstance(sample, Replayed) and not sample.captured:
                raise WrongResultError("sampling could not be captured")
            return Prepared(work, {"clips": networks.batch})

        return Contender(rival.name, build, rival.precision, rival.about, rival.graphed)

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

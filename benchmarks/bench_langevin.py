"""Langevin steps of STGConvNet, by a direct port to PyTorch, torch.compile and ours."""

from functools import cache

import torch
from torch import Tensor

from benchmarks.measure import Contender, Contest, Device, Prepared, WrongResultError
from benchmarks.presets import Chains, Preset
from vgan_fast.device import configure, multiplies_bf16, resolved
from vgan_fast.energy_step import sampler_of
from vgan_fast.graph import WARM_UP, CudaGraph, Replayed
from vgan_fast.networks import build_energy_network
from vgan_fast.settings import Settings

STEPS = 4  # of one round
# Relative error of f's gradient. Where bf16 turns a ReLU of few around, a sizeable part of it does,
# and the port rounds the pixels, too.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}
SPREAD = 60.0  # of the chains' pixels


def contest(of: Chains, preset: Preset, device: Device) -> Contest:
    """All ways on one network."""
    torch.manual_seed(1)
    sizes = of.frames, of.size, of.size
    begun = torch.randn(of.count, 3, *sizes, device=device.device) * SPREAD
    bf16 = multiplies_bf16(device.device)
    expected: list[Tensor] = []

    @cache
    def weights() -> dict[str, Tensor]:
        """Such as have f's gradient as large as the pixels: an untrained network's is nothing."""
        torch.manual_seed(1)
        network = build_energy_network(_settings(of, device, "reference", "fp32"), sizes)
        with torch.no_grad():
            for layer in network.convolutions:
                layer.weight.mul_(1000 * 2 / layer.weight[0].numel() ** 0.5)
        return network.state_dict()

    def network_of(backend: str, precision: str) -> tuple[torch.nn.Module, Settings]:
        settings = _settings(of, device, backend, precision)
        network = build_energy_network(settings, sizes).to(device.device)
        network.load_state_dict(weights())
        return network, settings

    def verified(gradient: Tensor, precision: str) -> None:
        gradient = gradient.float().cpu()
        if not expected:
            expected.append(gradient)
        error = float((gradient - expected[0]).norm() / expected[0].norm())
        if not error < TOLERANCE[precision]:
            raise WrongResultError(f"the gradient of f is off by {error:.1%}")

    def port(precision: str, mode: str | None) -> Prepared:
        """The public code's loop in PyTorch."""
        network, settings = network_of("reference", "fp32")
        configure(settings)
        network.requires_grad_(False)
        if precision == "bf16":
            network.to(memory_format=torch.channels_last_3d)

        def gradient_of(clips: Tensor) -> Tensor:
            clips = clips.detach().requires_grad_()
            with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
                f = network(clips)
            return torch.autograd.grad(f.sum(), clips)[0]

        if mode is not None:
            network.compile(
                **({"mode": mode} if preset.compiler == "inductor" else {"backend": mode}),
                dynamic=False,
            )

        def work() -> Tensor:
            clips = begun
            for _ in range(STEPS):
                drift = clips - gradient_of(clips)
                clips = clips - 0.045 * drift + 0.3 * torch.randn_like(clips)
            return clips

        verified(gradient_of(begun), precision)
        return Prepared(work, {"clips": of.count * STEPS})

    def ours(precision: str) -> Prepared:
        network, settings = network_of("auto", precision)
        configure(settings)
        sampler, scored = sampler_of(settings, 127.0), network.frozen()
        moment = torch.zeros((), dtype=torch.int64, device=device.device)

        def sample(clips: Tensor) -> dict[str, Tensor]:
            return {"clips": sampler(scored, clips, moment, STEPS).chains}

        if device.gpu:
            sample = Replayed(sample, CudaGraph(device.device))
            for _ in range(WARM_UP + 1):  # a graph is captured at the last
                sample(begun)
            if not sample.captured:
                raise WrongResultError("the steps could not be captured")
        verified(scored(begun)[1], precision)
        return Prepared(lambda: sample(begun)["clips"], {"clips": of.count * STEPS})

    low = "bf16" if bf16 else "fp32"
    port_about = "autograd of the plain network, the update as it is written, torch.randn"
    contenders = [
        Contender("port fp32", lambda _: port("fp32", None), "fp32", port_about),
        Contender(
            "port fp32, compiled",
            lambda _: port("fp32", "default" if preset.compiler == "inductor" else preset.compiler),
            "fp32",
            "the same, its network by torch.compile",
        ),
    ]
    if bf16:
        contenders += [
            Contender("port bf16", lambda _: port("bf16", None), "bf16", f"{port_about}, autocast"),
            Contender(
                "port bf16, compiled",
                lambda _: port(
                    "bf16", "default" if preset.compiler == "inductor" else preset.compiler
                ),
                "bf16",
                "the same, its network by torch.compile",
            ),
            Contender("ours, fp32", lambda _: ours("fp32"), "fp32", "the next in fp32"),
        ]
    about = "`vgan_fast/stgconvnet/fast.py` and the fused update; on a GPU one CUDA graph"
    contenders.append(Contender("ours", lambda _: ours(low), low, about, device.gpu))
    return Contest("langevin", str(of), contenders, preset.rounds, min(preset.warm_up, 2))


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Each of the networks."""
    return [contest(of, preset, device) for of in preset.chains]


def _settings(of: Chains, device: Device, backend: str, precision: str) -> Settings:
    return resolved(
        Settings(
            model="stgconvnet",
            experiment=of.experiment,
            frames=of.frames,
            size=of.size,
            chains=of.count,
            mask_penalty=0.0,
            device=device.device.type,
            backend=backend,
            precision=precision,
            graph=False if device.gpu else None,
        )
    )


def test_langevin(contest, contender, measured):
    measured(contest, contender)

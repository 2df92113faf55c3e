"""The fused networks, their kernels in the interpreter or on a GPU, against the reference."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from vgan_fast import fused, models
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.frames import frames_to_cells
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = ClipShape(frames=8, size=16, width=6, latent=5)
NETWORKS = {
    "one stream": ("OneStreamGenerator", {}),
    "two streams": ("TwoStreamGenerator", {"mask_bias": -1.0}),
    "discriminator": ("Discriminator", {"outputs": 1}),
    "discriminator of two": ("Discriminator", {"outputs": 2}),
}


def pair(name: str, dtype=torch.float32):
    """Reference and fused network with the same random weights, biases and statistics."""
    kind, options = NETWORKS[name]
    reference = getattr(models, kind)(TINY, **options)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in reference.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_()
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    ours = getattr(fused, kind)(TINY, **options, impl="triton")
    ours.load_state_dict(reference.state_dict())
    return reference.to(DEVICE, dtype), ours.to(DEVICE)


def sample(name: str, batch: int) -> torch.Tensor:
    if "stream" in name:
        return torch.randn(batch, TINY.latent, device=DEVICE)
    return torch.randn(batch, 3, TINY.frames, TINY.size, TINY.size, device=DEVICE)


def run(network, x: torch.Tensor, weight: torch.Tensor):
    """Outputs, input gradient, parameter gradients and buffers after one pass."""
    x = x.clone().requires_grad_()
    made = network(x)
    made = made if isinstance(made, tuple) else (made,)
    objective = (made[0] * weight.to(made[0].dtype)).sum() + sum(3 * m for m in made[1:])
    network.zero_grad()
    objective.backward()
    results = {f"output {i}": m.detach() for i, m in enumerate(made)}
    results["input gradient"] = x.grad
    results |= {f"gradient of {n}": p.grad for n, p in network.named_parameters()}
    return results | {n: b.clone() for n, b in network.named_buffers()}


def before_norm(network) -> set[str]:
    """Biases of convolutions whose channels are normalised afterwards: their gradient is 0."""
    names = [n for n, m in network.named_modules() if "Norm" in type(m).__name__]
    return {
        f"gradient of {n.rpartition('.')[0]}.{int(n.rpartition('.')[2]) - 1}.bias" for n in names
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_the_reference_s(name, batch, training):
    """Error against float64 within four times eager's own: those of several layers add up."""
    reference, ours = pair(name)
    exact = copy.deepcopy(reference).double()
    for network in (reference, ours, exact):
        network.train(training)
    x = sample(name, batch)
    shape = (
        x.shape[:1] if "discriminator" in name else (batch, 3, TINY.frames, TINY.size, TINY.size)
    )
    weight = torch.randn(*shape, *((1,) if "discriminator" in name else ()), device=DEVICE)
    before = dispatch.launches.total()
    found = run(ours, x, weight)
    assert dispatch.launches.total() >= before + 4
    eager = run(reference, x, weight)
    right = run(exact, x.double(), weight.double())
    zero = before_norm(reference) if training else set()
    assert len(zero) == (
        0 if not training else sum("Norm" in type(m).__name__ for m in reference.modules())
    )
    for key, value in right.items():
        assert found[key].shape == value.shape, key
        error = (found[key].double() - value).abs().max().item()
        if key in zero:
            scale = right[key.removesuffix("bias") + "weight"].norm().item()
            assert found[key].abs().max().item() <= 1e-6 * scale, key
            continue
        allowed = (eager[key].double() - value).abs().max().item()
        allowed += torch.finfo(torch.float32).eps * value.abs().max().item()
        assert error <= 4 * allowed, f"{key}: {error:.3g} over 4 x {allowed:.3g}"


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_move_freely_between_the_two(name):
    reference, ours = pair(name)
    assert list(reference.state_dict()) == list(ours.state_dict())
    reference.load_state_dict(ours.state_dict())


def test_cells_of_frames_are_scored_like_their_clips():
    _, ours = pair("discriminator")
    ours.eval()
    frames = torch.randint(0, 256, (2, TINY.frames, TINY.size, TINY.size, 3), dtype=torch.uint8)
    clip = (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3).to(DEVICE)
    cells = frames_to_cells(frames.to(DEVICE), impl="triton")
    torch.testing.assert_close(ours.score_cells(cells), ours(clip), rtol=1e-5, atol=1e-5)


def test_frozen_statistics_stay_and_a_cumulative_average_is_one():
    reference, ours = pair("discriminator")
    x = sample("discriminator", 3)
    norms = [[m for m in n.modules() if "Norm" in type(m).__name__] for n in (reference, ours)]
    for network, of in zip((reference, ours), norms, strict=True):
        for norm in of:
            norm.reset_running_stats()
            norm.momentum = None
        network(x)
        network(2 * x)
        for norm in of:
            norm.track_running_stats = False
        network(5 * x)
    for a, b in zip(*norms, strict=True):
        assert a.num_batches_tracked == b.num_batches_tracked == 2
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)


@pytest.mark.parametrize("model", ["two-stream", "one-stream"])
def test_training_steps_are_those_of_the_reference(model):
    """Three steps in fp32: losses, then weights. Adam turns rounding into steps of its own size."""
    sizes = dict(frames=8, size=16, width=6, latent=5, batch_size=3, model=model, lr=1e-4)
    if model == "one-stream":
        sizes |= dict(mask_penalty=0.0)
    frames = torch.randint(0, 256, (3, 8, 16, 16, 3), dtype=torch.uint8, device=DEVICE)
    losses, weights = [], []
    for backend in ("reference", "fused"):
        settings = Settings(backend=backend, precision="fp32", device=DEVICE, **sizes)
        step = GANStep(settings)
        before = dispatch.launches.total()
        losses.append([{k: float(v) for k, v in step(frames).items()} for _ in range(3)])
        assert (dispatch.launches.total() > before) == (backend == "fused")
        weights.append(
            {
                f"{name} {key}": value
                for name, network in step.networks.items()
                for key, value in network.state_dict().items()
                if f"gradient of {key}" not in before_norm(network)
            }
        )
        assert step.sample(2)["video"].isfinite().all()
    for ours, theirs in zip(*losses[::-1], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)
    for name, value in weights[0].items():
        distance = (weights[1][name].double() - value.double()).abs().mean()
        assert distance < 1e-4, name  # three steps of 1e-4 each way would be 6e-4


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_without_a_gpu_the_backend_is_refused():
    code = "from vgan_fast.train import main; main(['--backend', 'fused', '--dry-run'])"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: --backend fused: its kernels need a GPU; use --backend auto on a CPU\n"
    )


def test_a_fused_network_compiles_whole_as_the_first_thing_in_a_process():
    """On a CPU, where the ops run their twins; Inductor's own back end is the library's."""
    code = """
import torch
from vgan_fast.fused import Discriminator, TwoStreamGenerator
from vgan_fast.shape import ClipShape
shape = ClipShape(frames=8, size=16, width=4, latent=5)
torch.manual_seed(0)
generator = TwoStreamGenerator(shape)
latent = torch.randn(2, 5)
compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
video, mean = compiled(latent)
torch.manual_seed(1)
discriminator = Discriminator(shape).eval()
score = torch.compile(discriminator, fullgraph=True, backend="aot_eager")(video)
(score.sum() + mean).backward()
assert all(p.grad is not None for p in generator.parameters())
torch.testing.assert_close(score, discriminator(video))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]

"""The fused networks, their kernels in the interpreter or on a GPU, against the reference."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import softplus

from vgan_fast import fused, models
from vgan_fast.autoencoder_step import AutoencoderStep
from vgan_fast.future_step import FutureStep
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.blend.reference import mask_blend
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = ClipShape(frames=8, size=16, width=6, latent=5)
NETWORKS = {
    "one stream": ("OneStreamGenerator", {}),
    "two streams": ("TwoStreamGenerator", {"mask_bias": -1.0}),
    "future of two frames": ("FutureGenerator", {"mask_bias": -1.0, "condition": 2}),
    "future by a latent": ("FutureGenerator", {"mask_bias": -1.0, "encoder": "latent"}),
    "discriminator": ("Discriminator", {"outputs": 1}),
    "discriminator of two": ("Discriminator", {"outputs": 2}),
}


def pair(name: str, dtype=torch.float32, impl: str = "triton"):
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
    ours = getattr(fused, kind)(TINY, **options, impl=impl)
    ours.load_state_dict(reference.state_dict())
    return reference.to(DEVICE, dtype), ours.to(DEVICE)


def sample(name: str, batch: int) -> torch.Tensor:
    if "stream" in name:
        return torch.randn(batch, TINY.latent, device=DEVICE)
    if "future" in name:
        frames = NETWORKS[name][1].get("condition", 1)
        return torch.randn(batch, 3, frames, TINY.size, TINY.size, device=DEVICE)
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
    # No gradient is one of zero.
    results |= {
        f"gradient of {n}": torch.zeros_like(p) if p.grad is None else p.grad
        for n, p in network.named_parameters()
    }
    return results | {n: b.clone() for n, b in network.named_buffers()}


def before_norm(network) -> set[str]:
    """Biases of convolutions whose channels are then centred: their gradient is 0."""
    norms = {n: m for n, m in network.named_modules() if "Norm" in type(m).__name__}
    names = [n for n, m in norms.items() if m.training or not m.track_running_stats]
    return {
        f"gradient of {n.rpartition('.')[0]}.{int(n.rpartition('.')[2]) - 1}.bias" for n in names
    }


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("mode", ["training", "evaluation", "one norm frozen"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_the_reference_s(name, batch, mode, impl):
    """Error against float64 within four times eager's own: those of several layers add up."""
    reference, ours = pair(name, impl=impl)
    exact = copy.deepcopy(reference).double()
    training = mode != "evaluation"
    for network in (reference, ours, exact):
        network.train(training)
        if mode == "one norm frozen":
            next(m for m in network.modules() if "Norm" in type(m).__name__).eval()
    shape = (batch, 3, TINY.frames, TINY.size, TINY.size)
    if "discriminator" in name:
        shape = (batch, 1)
    zero = before_norm(reference)
    errors = {}
    for _ in range(4 - batch):  # of one number eager's rounding is now and then none
        x, weight = sample(name, batch), torch.randn(shape, device=DEVICE)
        before = dispatch.launches.total()
        found = run(ours, x, weight)
        assert (dispatch.launches.total() >= before + 6) == (impl == "triton")
        eager = run(reference, x, weight)
        right = run(exact, x.double(), weight.double())
        for key, value in right.items():
            assert found[key].shape == value.shape, key
            if key in zero:
                scale = right[key.removesuffix("bias") + "weight"].norm().item()
                assert found[key].abs().max().item() <= 1e-6 * scale, key
                continue
            rounding = torch.finfo(torch.float32).eps * value.abs().max().item()
            distances = [(seen[key].double() - value).abs().max().item() for seen in (found, eager)]
            errors.setdefault(key, []).append((distances[0], distances[1] + rounding))
    for key, distances in errors.items():
        error, allowed = (max(of) for of in zip(*distances, strict=True))
        assert error <= 4 * allowed, f"{key}: {error:.3g} over 4 x {allowed:.3g}"


@pytest.mark.parametrize("mode", ["training", "evaluation", "sampling"])
@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_activations_are_bf16_and_gradients_fp32(name, mode):
    """What a GPU trains in by default; the twins, as the interpreter's bf16 is wrong."""
    reference, ours = pair(name, impl="auto")
    for network in (reference, ours):
        network.train(mode == "training")
    x, exact = sample(name, 2), copy.deepcopy(reference).double()
    with torch.set_grad_enabled(mode != "sampling"):
        right = exact(x.double())
        with torch.autocast(DEVICE, torch.bfloat16):
            made, theirs = ours(x), reference(x)
    right, made, theirs = (m if isinstance(m, tuple) else (m,) for m in (right, made, theirs))
    assert made[0].dtype == torch.bfloat16
    for a, b, c in zip(made, theirs, right, strict=True):
        allowed = (b - c).abs().max() + torch.finfo(torch.bfloat16).eps * c.abs().max()
        assert (a - c).abs().max() <= 4 * allowed
    if "stream" in name:
        # Planar, as the discriminator's cells want it.
        assert made[0].is_contiguous()
    if mode == "training":
        sum(m.float().square().sum() for m in made).backward()
        sum(m.square().sum() for m in right).backward()
        zero = before_norm(ours)
        for (key, a), b in zip(ours.named_parameters(), exact.parameters(), strict=True):
            if f"gradient of {key}" in zero:
                continue
            assert a.grad.dtype == torch.float32
            assert a.grad.stride() == a.stride() or a.grad.numel() == max(a.shape)
            cosine = torch.cosine_similarity(a.grad.flatten().double(), b.grad.flatten(), dim=0)
            assert cosine > 0.97, key


def test_a_pair_under_autocast_is_scored_in_bf16():
    _, ours = pair("discriminator", impl="auto")
    size = TINY.frames, TINY.size, TINY.size
    frames = torch.zeros(2, *size, 3, dtype=torch.uint8, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        for fake in (torch.randn(2, 3, *size, device=DEVICE), torch.randn(2, 3, *size).bfloat16()):
            assert ours.score_pair(frames, fake.to(DEVICE)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_move_freely_between_the_two(name):
    reference, ours = pair(name)
    assert list(reference.state_dict()) == list(ours.state_dict())
    reference.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_pair_is_scored_as_its_halves(impl, training):
    reference, ours = pair("discriminator", impl=impl)
    reference.train(training)
    ours.train(training)
    size = TINY.frames, TINY.size, TINY.size
    frames = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, device=DEVICE)
    clip = (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
    fake = torch.randn(2, 3, *size, device=DEVICE)
    for seen in (ours.score_pair(frames, fake).chunk(2), (reference(clip), reference(fake))):
        (seen[0].sum() - 2 * seen[1].square().sum()).backward()
    pair_of_logits = ours.score_pair(frames, fake).chunk(2)
    for seen, expected in zip(pair_of_logits, (clip, fake), strict=True):
        torch.testing.assert_close(seen, reference(expected), rtol=1e-4, atol=1e-4)
    assert all(b.equal(a) for a, b in counters(ours, reference))
    for (name, a), b in zip(ours.named_parameters(), reference.parameters(), strict=True):
        if not training or f"gradient of {name}" not in before_norm(reference):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for a, b in zip(ours.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def counters(*networks):
    named = [[b for n, b in net.named_buffers() if n.endswith("tracked")] for net in networks]
    return zip(*named, strict=True)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_without_gradients_is_that_with_them(name, impl):
    """Folded into the convolutions, and layer by layer."""
    _, ours = pair(name, impl=impl)
    ours.eval()
    x = sample(name, 3)
    with_gradients = ours(x)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), with_gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_streams_are_those_of_the_reference(impl):
    reference, ours = pair("two streams", impl=impl)
    latent = sample("two streams", 2)
    with torch.no_grad():
        for network in (reference, ours):
            network.eval()
        found, expected = ours.streams(latent), reference.streams(latent)
    for name in ("video", "foreground", "mask", "background"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weights_are_stored_as_they_are_multiplied():
    for name in NETWORKS:
        _, ours = pair(name)
        for where, module in copy.deepcopy(ours).named_modules():
            if getattr(module, "stride", (0,))[0] == 2:
                weight = module.weight
                if where in ("background_head", "encoder.0"):  # the library multiplies these
                    assert weight.is_contiguous(memory_format=torch.channels_last)
                    continue
                assert weight.permute(*range(2, weight.dim()), 1, 0).is_contiguous()
                assert torch.zeros_like(weight).stride() == weight.stride()


def test_frozen_statistics_stay_and_a_cumulative_average_is_one():
    reference, ours = pair("discriminator")
    x = sample("discriminator", 3)
    norms = [[m for m in n.modules() if "Norm" in type(m).__name__] for n in (reference, ours)]
    scored = []
    for network, of in zip((reference, ours), norms, strict=True):
        for norm in of:
            norm.reset_running_stats()
            norm.momentum = None
        network(x)
        network(2 * x)
        for norm in of:
            norm.track_running_stats = False
        frozen = network(5 * x)
        network.eval()  # the running statistics, although they are not tracked
        scored.append((frozen, network(3 * x)))
    torch.testing.assert_close(*scored, rtol=1e-4, atol=1e-5)
    for a, b in zip(*norms, strict=True):
        assert a.num_batches_tracked == b.num_batches_tracked == 2
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)


def exact_step(networks, optimizers, frames, latents, mask_penalty) -> None:
    """The step as the paper has it, in float64."""
    generator, discriminator = networks["generator"], networks["discriminator"]
    real = (frames.double() / 127.5 - 1).permute(0, 4, 1, 2, 3)
    if isinstance(generator, models.TwoStreamGenerator):
        fake, mask_mean = mask_blend(*generator._logits(latents.double()), torch.float64)
    else:
        hidden = generator.foreground(latents.double()[:, :, None, None, None])
        fake, mask_mean = torch.tanh(generator.head(hidden)), 0.0
    d = softplus(-discriminator(real)).mean() + softplus(discriminator(fake.detach())).mean()
    optimizers["discriminator"].zero_grad()
    d.backward()
    optimizers["discriminator"].step()
    optimizers["generator"].zero_grad()
    (softplus(-discriminator(fake)).mean() + mask_penalty * mask_mean).backward()
    optimizers["generator"].step()


@pytest.mark.parametrize(
    "model", ["two-stream", pytest.param("one-stream", marks=pytest.mark.slow)]
)
def test_each_of_five_steps_from_the_reference_s_state_is_its_step(model):
    """Weights after it: error against float64 within twice fp32 eager's own, over the tensor.

    Adam turns the gradient of a bias before a norm, which is rounding, into steps of its own size.
    """
    sizes = dict(frames=8, size=16, width=6, latent=5, batch_size=3, model=model, lr=1e-3)
    sizes |= dict(mask_penalty=0.5 if model == "two-stream" else 0.0, average=0.0)
    frames = torch.randint(0, 256, (5, 3, 8, 16, 16, 3), dtype=torch.uint8, device=DEVICE)
    steps = {
        backend: GANStep(Settings(backend=backend, precision="fp32", device=DEVICE, **sizes))
        for backend in ("reference", "fused")
    }
    theirs, ours = steps["reference"], steps["fused"]
    exact = {name: copy.deepcopy(network).double() for name, network in theirs.networks.items()}
    optimizers = {
        name: torch.optim.Adam(network.parameters(), 1e-3, betas=(0.5, 0.999))
        for name, network in exact.items()
    }
    for batch in frames:
        for name, network in theirs.networks.items():
            exact[name].load_state_dict(network.state_dict())
            ours.networks[name].load_state_dict(network.state_dict())
            optimizers[name].load_state_dict(theirs.optimizers[name].state_dict())
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        drawn = copy.deepcopy(theirs.random.get_state())
        latents = theirs.latents(3)
        theirs.random.set_state(drawn)
        exact_step(exact, optimizers, batch, latents, sizes["mask_penalty"])
        before = dispatch.launches.total()
        theirs(batch)
        assert dispatch.launches.total() == before
        ours(batch)
        assert dispatch.launches.total() > before
        for name, network in exact.items():
            zero = {key.removeprefix("gradient of ") for key in before_norm(network)}
            for key, right in network.named_parameters():
                if key in zero:
                    continue
                found = ours.networks[name].get_parameter(key).double()
                eager = theirs.networks[name].get_parameter(key).double()
                rounding = torch.finfo(torch.float32).eps * right.norm()
                allowed = 2 * ((eager - right).norm() + rounding)
                assert (found - right).norm() <= allowed, f"{name} {key}"


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
norms = [n for n, m in generator.named_modules() if "Norm" in type(m).__name__]
before = {f"{n[:-1]}{int(n[-1]) - 1}.bias" for n in norms}
assert {n for n, p in generator.named_parameters() if p.grad is None} == before
torch.testing.assert_close(score, discriminator(video))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


OTHERS = {
    "future": (FutureStep, {"model": "future", "condition": 2}),
    "future by a latent": (FutureStep, {"model": "future", "encoder": "latent"}),
    "autoencoder": (AutoencoderStep, {"model": "autoencoder"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_step_of_another_model_on_the_kernels_is_the_reference_s(name):
    """Plain descent, so that what a gradient is off by is what a weight is off by."""
    kind, options = OTHERS[name]
    sizes = dict(frames=4, size=8, width=4, latent=5, batch_size=3, mask_penalty=0.0)
    options = dict(optimizer="sgd", lr=0.5, precision="fp32", device=DEVICE, **sizes, **options)
    frames = torch.randint(0, 256, (3, 4, 8, 8, 3), dtype=torch.uint8, device=DEVICE)
    theirs, ours = (kind(Settings(backend=of, **options)) for of in ("reference", "fused"))
    begun = {n: copy.deepcopy(network.state_dict()) for n, network in theirs.networks.items()}
    before = dispatch.launches.total()
    losses, wanted = ours(frames), theirs(frames)
    assert dispatch.launches.total() > before
    for loss, value in wanted.items():
        torch.testing.assert_close(losses[loss], value, rtol=1e-4, atol=1e-5)
    moved = 0
    for n, network in theirs.networks.items():
        own = ours.networks[n].state_dict()
        zero = {key.removeprefix("gradient of ") for key in before_norm(network)}
        for key, value in network.state_dict().items():
            if key not in zero and value.is_floating_point():
                change = (value - begun[n][key]).abs().max()
                moved += bool(change > 0)
                off = (own[key] - value).abs().max()
                assert off <= 0.01 * change + 1e-6, (n, key)
    assert moved > 10


@pytest.mark.gpu
@pytest.mark.parametrize("name", OTHERS)
def test_steps_of_other_models_in_bf16_follow_the_fp32_reference(name):
    kind, options = OTHERS[name]
    sizes = dict(frames=16, size=32, width=32, batch_size=16, seed=3, mask_penalty=0.0)
    frames = torch.randint(0, 256, (16, 16, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    runs = []
    for backend, precision in (("reference", "fp32"), ("auto", "bf16")):
        given = dict(backend=backend, precision=precision, device=DEVICE, **sizes, **options)
        step = kind(Settings(**given))
        runs.append([{k: float(v) for k, v in step(frames).items()} for _ in range(5)])
    for ours, theirs in zip(*runs[::-1], strict=True):
        assert ours == pytest.approx(theirs, rel=0.05, abs=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_steps_in_bf16_follow_the_fp32_reference(backend):
    sizes = dict(frames=16, size=32, width=64, latent=100, batch_size=16, seed=3)
    frames = torch.randint(0, 256, (16, 16, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    runs = []
    for name, precision in (("reference", "fp32"), (backend, "bf16")):
        step = GANStep(Settings(backend=name, precision=precision, device=DEVICE, **sizes))
        runs.append([{k: float(v) for k, v in step(frames).items()} for _ in range(5)])
    for ours, theirs in zip(*runs[::-1], strict=True):
        assert ours == pytest.approx(theirs, rel=0.05, abs=0.02)

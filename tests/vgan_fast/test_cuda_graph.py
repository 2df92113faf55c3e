"""Capture and replay: on a CPU with a stand-in as strict as CUDA, for real on a GPU."""

import copy
import dataclasses
from unittest.mock import MagicMock, call

import pytest
import torch
from fake_graph import FakeGraph, ForbiddenError, pointer, tensors

from vgan_fast import graph, sampling
from vgan_fast.autoencoder_step import AutoencoderStep
from vgan_fast.future_step import FutureStep
from vgan_fast.gan_step import GANStep
from vgan_fast.graph import CudaGraph, Replayed
from vgan_fast.networks import build_generator
from vgan_fast.settings import Settings

TINY = Settings(
    batch_size=4,
    frames=8,
    size=16,
    width=4,
    latent=6,
    device="cpu",
    precision="fp32",
    average=0.9,
    graph=False,
)
STEPS = 8
CAPTURED = graph.WARM_UP + 1  # the call that captures


def batch(number, settings=TINY):
    seeded = torch.Generator().manual_seed(number)
    shape = (settings.batch_size, settings.frames, settings.size, settings.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded).to(settings.device)


def replayed(settings=TINY, make_graph=FakeGraph, kind=GANStep):
    return kind(dataclasses.replace(settings, graph=True), make_graph)


def trained(step, numbers):
    """Losses of each step, copied: a replay overwrites them."""
    return [
        {name: value.clone() for name, value in step(batch(number, step.settings)).items()}
        for number in numbers
    ]


def state(step):
    """All that the next step depends on, copied."""
    weights = {name: network.state_dict() for name, network in step.networks.items()}
    return copy.deepcopy({"weights": weights, "rest": step.state_dict()})


def restored(step, kept):
    for name, network in step.networks.items():
        network.load_state_dict(kept["weights"][name])
    step.load_state_dict(copy.deepcopy(kept["rest"]))
    return step


def assert_same(first, second):
    found, expected = tensors(first), tensors(second)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# The class alone.


def test_each_call_does_its_work_once_whether_run_captured_or_replayed():
    total = torch.zeros(3)
    stand_in = FakeGraph()

    def add(x):
        total.add_(x)
        return {"doubled": 2 * x}

    run = Replayed(add, stand_in)
    where = []
    for number in range(1, STEPS + 1):
        given = torch.full((3,), float(number))
        made = run(given)["doubled"]
        where.append(pointer(made))
        assert torch.equal(made, 2 * given)
        assert torch.equal(total, torch.full((3,), number * (number + 1) / 2))
    assert (stand_in.captures, stand_in.replays) == (1, STEPS - graph.WARM_UP)
    assert len(set(where[graph.WARM_UP :])) == 1  # A replay fills the same memory.


def test_an_input_of_another_shape_or_dtype_is_refused():
    run = Replayed(lambda x: {"y": x + 1}, FakeGraph())
    run(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(1, 3\) torch.float32 for a graph of \(2, 3\)"):
        run(torch.zeros(1, 3))  # It would be broadcast.
    with pytest.raises(ValueError, match=r"torch.float64 for a graph of .* torch.float32"):
        run(torch.zeros(2, 3, dtype=torch.float64))


UNCAPTURABLE = {
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x.sum()),
    "bool": lambda x: x if x.sum() else -x,
    "compare": lambda x: x if torch.equal(x, x) else -x,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "unique": lambda x: x.unique(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "tolist": lambda x: x * x.tolist()[0],
    "unknown generator": lambda x: x + 0 * torch.rand(3, generator=torch.Generator()),
    "global generator": lambda x: x + 0 * torch.rand(3),
    "dropout": lambda x: x + 0 * torch.nn.functional.dropout(x),
}


@pytest.mark.parametrize("name", UNCAPTURABLE)
def test_what_cannot_be_captured_runs_as_it_is_after_one_warning(name, caplog):
    total = torch.zeros(3)

    def add(x):
        total.add_(x)
        return {"y": UNCAPTURABLE[name](x)}

    stand_in = FakeGraph()
    run = Replayed(add, stand_in)
    for number in range(1, STEPS + 1):
        x = torch.tensor([1.0, 2.0, float(number)])
        assert torch.equal(run(x)["y"], UNCAPTURABLE[name](x))
        assert total[0] == number
    assert stand_in.replays == 0
    (record,) = caplog.records
    assert record.getMessage().startswith("no CUDA graph")
    assert "\n" not in record.getMessage()


def test_the_warning_names_the_cause_not_what_ended_the_capture(caplog):
    class Invalidated(FakeGraph):
        def capture(self, function, random):
            try:
                return super().capture(function, random)
            finally:
                raise RuntimeError("the capture was invalidated")

    run = Replayed(lambda x: {"y": x * x.sum().item()}, Invalidated())
    for _ in range(STEPS):
        run(torch.ones(3))
    assert "waits for the device" in caplog.text
    assert "invalidated" not in caplog.messages[0]


class Counting:
    """A function whose work depends on a number of the host's, in one way or another."""

    def __init__(self, how):
        self.how, self.calls = how, 0
        self.kept = torch.zeros(3)

    def __call__(self, x):
        self.calls += 1
        match self.how:
            case "scalar":
                y = x * self.calls
            case "shape":
                y = x[: 1 + self.calls % 2] * 2
            case "operations":
                y = x + 1 if self.calls % 2 else x - 1
            case "tensor":
                self.kept = torch.full((3,), 2.0)
                y = x * self.kept
            case "made on the host":
                y = x * torch.tensor([1.0, 2.0, 3.0])
            case "kept":
                y = x * self.kept
                self.kept = y
        return {"y": y}


@pytest.mark.parametrize("how", ["scalar", "shape", "operations", "made on the host", "kept"])
def test_the_stand_in_refuses_a_replay_that_would_be_stale(how):
    run = Replayed(Counting(how), FakeGraph())
    with pytest.raises(ForbiddenError):
        for _ in range(STEPS):
            run(torch.ones(3))


def test_the_stand_in_takes_memory_that_the_function_makes_anew_each_time():
    run = Replayed(Counting("tensor"), FakeGraph())
    for number in range(STEPS):
        assert run(torch.full((3,), float(number)))["y"][0] == 2 * number


# The training step.

VARIANTS = [
    {},
    {"loss": "hinge"},
    {"logits": "2"},
    {"model": "one-stream", "mask_penalty": 0.0},
    {"optimizer": "sgd", "lr": 0.01},
    {"precision": "bf16"},
    {"average": 0.0},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_replayed_steps_are_eager_ones_bit_for_bit(changes):
    settings = dataclasses.replace(TINY, **changes)
    eager, step = GANStep(settings), replayed(settings)
    assert_same(trained(step, range(STEPS)), trained(eager, range(STEPS)))
    assert_same(state(step), state(eager))
    stand_in = step._run._graph
    assert (stand_in.captures, stand_in.replays) == (1, STEPS - graph.WARM_UP)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(FutureStep, {"model": "future"}), (AutoencoderStep, {"model": "autoencoder"})],
    ids=["future", "autoencoder"],
)
def test_replayed_steps_of_other_models_are_eager_ones_bit_for_bit(kind, changes):
    settings = dataclasses.replace(TINY, **changes, mask_penalty=0.0, average=0.0)
    eager, step = kind(settings), replayed(settings, kind=kind)
    assert_same(trained(step, range(STEPS)), trained(eager, range(STEPS)))
    assert_same(state(step), state(eager))
    assert step._run._graph.replays == STEPS - graph.WARM_UP


def test_replayed_steps_on_the_kernels_are_eager_ones_bit_for_bit(monkeypatch):
    monkeypatch.setattr(graph, "WARM_UP", 1)
    settings = dataclasses.replace(TINY, backend="fused", batch_size=2, size=8, frames=2)
    eager, step = GANStep(settings), replayed(settings)
    assert_same(trained(step, range(3)), trained(eager, range(3)))
    assert_same(state(step), state(eager))
    assert step._run._graph.replays == 2


@pytest.mark.parametrize("at", [2, CAPTURED + 1], ids=["while warming up", "while replaying"])
@pytest.mark.parametrize("anew", [True, False], ids=["another object", "the same object"])
def test_a_run_resumes_bit_for_bit(at, anew):
    eager, step = GANStep(TINY), replayed()
    trained(eager, range(at))
    trained(step, range(at))
    kept = state(step)
    assert_same(kept, state(eager))
    trained(step, range(at, STEPS))
    step = restored(replayed() if anew else step, kept)
    numbers = range(at, at + STEPS)
    assert_same(trained(step, numbers), trained(eager, numbers))
    assert_same(state(step), state(eager))
    assert step._run._graph.captures == 1


def test_a_graph_may_be_left_and_taken_up_by_resuming():
    eager, step = GANStep(TINY), replayed()
    trained(eager, range(CAPTURED))
    trained(step, range(CAPTURED))
    swapped = restored(GANStep(TINY), state(step)), restored(replayed(), state(eager))
    first, second = (trained(step, range(CAPTURED, 2 * STEPS)) for step in swapped)
    assert_same(first, second)


def test_a_captured_step_uses_no_memory_but_its_own():
    step = replayed()
    trained(step, range(CAPTURED))
    own = tensors([network.state_dict() for network in step.networks.values()])
    own += tensors([optimizer.state_dict() for optimizer in step.optimizers.values()])
    own += step._run._inputs
    own += [step._one, step._ones, step._mask_penalty]  # constants
    assert step._run._graph.state <= {pointer(tensor) for tensor in own}


def test_samples_between_replays_disturb_nothing_and_see_the_weights():
    eager, step = GANStep(TINY), replayed()
    for number in range(STEPS):
        assert_same(trained(step, [number]), trained(eager, [number]))
        assert_same(step.sample(2), eager.sample(2))


class Failing(FakeGraph):
    """A capture that ends in an exception after so many operations."""

    operations = 0

    def capture(self, function, random):
        left = self.operations

        class Stop(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                nonlocal left
                left -= 1
                if left == 0:
                    raise RuntimeError("operation not permitted when stream is capturing\nmore")
                return operation(*args, **(kwargs or {}))

        def stopped():
            with Stop():
                return function()

        return super().capture(stopped, random)


# In the generator, both backward passes, the frozen discriminator, and the moving average.
@pytest.mark.parametrize("operations", [1, 90, 140, 175, 196])
def test_a_capture_that_fails_anywhere_leaves_the_state_whole(operations, caplog, monkeypatch):
    monkeypatch.setattr(Failing, "operations", operations)
    eager, step = GANStep(TINY), replayed(make_graph=Failing)
    assert_same(trained(step, range(STEPS)), trained(eager, range(STEPS)))
    assert_same(state(step), state(eager))
    assert all(p.requires_grad for p in step.discriminator.parameters())
    (record,) = caplog.records
    assert record.getMessage() == (
        "no CUDA graph, which is slower: the capture failed "
        "(operation not permitted when stream is capturing)"
    )


# Generation.


def test_clips_from_a_graph_are_those_made_without(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 2)
    generator = build_generator(TINY)
    latents = torch.randn(11, TINY.latent)
    stand_in = FakeGraph()
    made = [
        [{name: clip.clone() for name, clip in clips.items()} for clips in batches]
        for batches in (
            sampling.sample_batches(generator, latents, stand_in),
            sampling.sample_batches(generator, latents, None),
        )
    ]
    assert_same(*made)
    assert [len(clips["video"]) for clips in made[0]] == [2, 2, 2, 2, 2, 1]
    assert stand_in.replays == 2


# The calls of CUDA, which a CPU can only watch; then real captures.


@pytest.fixture
def cuda(monkeypatch):
    """Stand-ins for what `CudaGraph` calls; their calls in order, `cuda.mock_calls`."""
    cuda = MagicMock()
    cuda.graph.return_value.__exit__.return_value = None
    cuda.stream.return_value.__exit__.return_value = None
    for name in ("CUDAGraph", "Stream", "current_stream", "default_generators", "graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return cuda


def test_warming_up_runs_between_two_waits_on_another_stream(cuda):
    stand_in = CudaGraph(torch.device("cuda"))
    stream, caller = cuda.Stream.return_value, cuda.current_stream.return_value
    cuda.reset_mock()
    assert stand_in.warm_up(cuda.work) is cuda.work.return_value
    assert cuda.mock_calls == [
        call.current_stream(torch.device("cuda")),
        call.Stream().wait_stream(caller),
        call.stream(stream),
        call.stream().__enter__(),
        call.work(),
        call.stream().__exit__(None, None, None),
        call.current_stream().wait_stream(stream),
    ]


def test_a_capture_registers_its_generators_and_leaves_other_threads_alone(cuda):
    stand_in, random = CudaGraph(torch.device("cuda")), MagicMock()
    assert stand_in.capture(cuda.work, [random]) is cuda.work.return_value
    names = [name for name, _, _ in cuda.mock_calls]
    assert call.CUDAGraph().register_generator_state(random) in cuda.mock_calls
    assert names.index("CUDAGraph().register_generator_state") < names.index("graph().__enter__")
    assert cuda.graph.call_args == call(
        cuda.CUDAGraph(), stream=cuda.Stream(), capture_error_mode="thread_local"
    )
    random.graphsafe_set_state.assert_not_called()
    cuda.CUDAGraph().replay.assert_not_called()
    stand_in.replay()
    cuda.CUDAGraph().replay.assert_called_once_with()


def test_a_failed_capture_restores_stream_and_generators(cuda):
    stand_in, random = CudaGraph(torch.device("cuda")), MagicMock()
    cuda.work.side_effect = ValueError("waits")
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("capture was invalidated")
    with pytest.raises(RuntimeError, match="invalidated") as failure:
        stand_in.capture(cuda.work, [random])
    assert str(failure.value.__context__) == "waits"  # `Replayed` reports it.
    cuda.stream.return_value.__exit__.assert_called_once()
    random.graphsafe_set_state.assert_called_once_with(random.clone_state())
    own = cuda.default_generators[cuda.Stream().device.index]
    own.graphsafe_set_state.assert_called_once_with(own.clone_state())


GPU = dataclasses.replace(TINY, device="cuda", average=0.9)
ON_A_GPU = [
    {"precision": "fp32"},
    {"precision": "bf16"},
    {"optimizer": "sgd", "lr": 0.01},
    {"logits": "2"},
    {"model": "one-stream", "mask_penalty": 0.0},
    {"backend": "fused"},
    {"backend": "fused", "precision": "bf16"},
]


@pytest.fixture
def repeatable():
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def assert_close(first, second):
    for found, expected in zip(tensors(first), tensors(second), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", ON_A_GPU, ids=str)
def test_on_a_gpu_graph_and_eager_agree(changes, repeatable, caplog):
    settings = dataclasses.replace(GPU, **changes)
    eager, step = GANStep(settings), replayed(settings, CudaGraph)
    assert_close(trained(step, range(STEPS + 5)), trained(eager, range(STEPS + 5)))
    assert torch.equal(step.random.get_state(), eager.random.get_state())
    assert step._run._outputs is not None
    # It may say that it chooses kernels.
    assert not [record for record in caplog.records if record.name == "vgan_fast.graph"]


@pytest.mark.gpu
def test_on_a_gpu_a_run_resumes(repeatable):
    whole, step = (replayed(GPU, CudaGraph) for _ in range(2))
    expected = trained(whole, range(2 * STEPS))
    trained(step, range(STEPS))
    kept = state(step)
    for resumed in (restored(replayed(GPU, CudaGraph), kept), restored(step, kept)):
        assert_close(trained(resumed, range(STEPS, 2 * STEPS)), expected[STEPS:])
        assert torch.equal(resumed.random.get_state(), whole.random.get_state())


@pytest.mark.gpu
def test_on_a_gpu_a_replay_neither_waits_nor_allocates():
    step = replayed(GPU, CudaGraph)
    frames = batch(0, GPU)
    for _ in range(CAPTURED):
        step(frames)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_on_a_gpu_a_failed_capture_is_followed_by_eager_steps(repeatable, caplog, monkeypatch):
    eager, step = GANStep(GPU), replayed(GPU, CudaGraph)
    average = step._average

    def waiting():
        average()
        next(step.sampler.parameters()).sum().item()

    monkeypatch.setattr(step, "_average", waiting)
    assert_close(trained(step, range(STEPS)), trained(eager, range(STEPS)))
    assert torch.equal(step.random.get_state(), eager.random.get_state())
    assert len([record for record in caplog.records if record.name == "vgan_fast.graph"]) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(2, device="cuda").unique().numel() == 2, "the device's own generator draws"


@pytest.mark.gpu
def test_on_a_gpu_clips_from_a_graph_are_those_made_without(repeatable, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)
    generator = build_generator(GPU).cuda()
    latents = torch.randn(8 * STEPS + 3, GPU.latent, device="cuda")
    plain = sampling.sample_batches(generator, latents, None)
    for clips in sampling.sample_batches(generator, latents, CudaGraph(torch.device("cuda"))):
        assert_close(clips, next(plain))

import dataclasses

import pytest
import torch

from vgan_fast.device import configure, find_device, resolved
from vgan_fast.errors import UserError
from vgan_fast.settings import Settings

CPU = Settings(device="cpu")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_chosen_where_it_is_native(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert resolved(CPU).precision == ("bf16" if native else "fp32")
    assert resolved(dataclasses.replace(CPU, backend="reference")).precision == "fp32"
    for asked in ("bf16", "fp32"):
        assert resolved(dataclasses.replace(CPU, precision=asked)).precision == asked


def test_pytorch_still_answers_the_private_query():
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)


def test_nothing_is_left_to_choose():
    settings = resolved(Settings())
    assert settings.device == find_device("auto").type
    assert settings.precision in ("bf16", "fp32")
    assert settings.graph == (settings.device == "cuda")
    assert resolved(settings) == settings


@pytest.fixture
def gpu(monkeypatch):
    """A function that pretends that there is a GPU of some compute capability."""

    def pretend(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("changes", "graph"),
    [
        ({}, True),
        ({"precision": "tf32"}, True),
        ({"deterministic": True}, True),
        ({"optimizer": "sgd"}, True),
        ({"graph": True}, True),
        ({"graph": False}, False),
        ({"backend": "reference"}, False),
        ({"precision": "fp16"}, False),
        ({"device": "cpu"}, False),
    ],
    ids=str,
)
def test_a_step_is_a_graph_on_a_gpu_where_it_can_be(gpu, caplog, changes, graph):
    gpu(9, 0)
    settings = resolved(Settings(**changes))
    assert settings.graph is graph
    assert resolved(settings) == settings
    expected = ["--precision fp16: no CUDA graph, its gradient scaler is not captured"]
    assert caplog.messages == (expected if changes.get("precision") == "fp16" else [])


def test_what_needs_a_gpu_is_refused_on_a_cpu():
    with pytest.raises(UserError, match="--graph: CUDA graphs need a GPU"):
        resolved(dataclasses.replace(CPU, graph=True))
    with pytest.raises(UserError, match="--precision tf32: needs a GPU from Ampere on"):
        resolved(dataclasses.replace(CPU, precision="tf32"))


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True)])
def test_gpus_before_ampere_have_neither_bf16_nor_tf32(gpu, capability, native):
    gpu(*capability)
    assert resolved(Settings()).precision == ("bf16" if native else "fp32")
    if native:
        assert resolved(Settings(precision="tf32")).precision == "tf32"
    else:
        with pytest.raises(UserError, match="--precision tf32"):
            resolved(Settings(precision="tf32"))


@pytest.fixture
def switches():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "tf32"])
def test_fp32_is_rounded_to_tf32_for_tf32_and_only_then(switches, precision):
    tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = not tf32
    torch.set_float32_matmul_precision("highest" if tf32 else "high")
    configure(Settings(device="cpu", precision=precision))
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


def test_freed_memory_is_kept_but_for_the_reference(monkeypatch):
    calls = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda *values: calls.append(values)

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    configure(CPU)
    kept = list(calls)
    calls.clear()
    configure(dataclasses.replace(CPU, backend="reference"))
    assert [name for name, _ in kept] == [name for name, _ in calls] == [-4, -3, -1]
    assert dict(kept)[-4] == 0
    assert dict(calls)[-4] > 0
    calls.clear()
    configure(dataclasses.replace(CPU, device="cuda"))
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))  # musl, macOS
    configure(CPU)
    assert not calls

import dataclasses

import pytest
import torch

from vgan_fast.device import configure, find_device, resolved
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
    assert resolved(settings) == settings


def test_fp32_is_not_rounded_to_tf32():
    torch.backends.cudnn.allow_tf32 = True
    configure(CPU)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"

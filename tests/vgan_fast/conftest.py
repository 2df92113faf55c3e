import pytest
import torch


@pytest.fixture
def recordable(monkeypatch):
    """A CPU's noise by PyTorch alone: what NumPy does, a graph's stand-in cannot record."""
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: tensor)
    monkeypatch.setattr(torch, "from_numpy", lambda tensor: tensor)

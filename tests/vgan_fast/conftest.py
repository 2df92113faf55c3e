import pytest
import torch
from processes import Together


@pytest.fixture(scope="session")
def two():
    """Two processes of one run, by gloo."""
    processes = Together(2)
    yield processes
    processes.close()


@pytest.fixture
def recordable(monkeypatch):
    """A CPU's noise by PyTorch alone: what NumPy does, a graph's stand-in cannot record."""
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: tensor)
    monkeypatch.setattr(torch, "from_numpy", lambda tensor: tensor)

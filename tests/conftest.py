import os

import pytest
import torch

# Without a GPU kernels run in Triton's interpreter, which reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def choices_of_their_own(tmp_path_factory):
    """Tests neither read nor write what the user's runs have chosen (`kernels.choice`)."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """fp32 is fp32: PyTorch's default on a GPU, and so the kernels', is TF32 in convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

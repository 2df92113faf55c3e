import os

import pytest
import torch

# Without a GPU kernels run in Triton's interpreter, which reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

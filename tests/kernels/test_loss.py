import pytest
import torch
from torch import nn

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.loss import api, logistic_losses, reference, triton_impl


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory is NaN."""
    fresh = torch.empty
    monkeypatch.setattr(triton_impl.torch, "empty", lambda *a, **k: fresh(*a, **k).fill_(torch.nan))


def losses_and_gradient(function, logits, scale=0.7):
    logits = logits.detach().requires_grad_()
    losses = function(logits)
    weights = scale * torch.arange(1.0, 1.0 + len(losses), device=DEVICE).to(losses.dtype)
    (gradient,) = torch.autograd.grad(losses, logits, weights)
    return {"losses": losses.detach(), "dlogits": gradient}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("real", [[True], [False], [True, False], [False, True, True]], ids=str)
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("count", [1, 3, 255, 256, 257, 600])
def test_losses_and_gradient_agree_with_float64(count, spread, real, dtype):
    logits = (spread * torch.randn(count * len(real), 1, device=DEVICE)).to(dtype)
    before = dispatch.launches.copy()
    ours = losses_and_gradient(lambda z: logistic_losses(z, real, impl="triton"), logits)
    ran = dispatch.launches - before
    assert ran == {"logistic_losses": 1, "logistic_losses_backward": 1}
    eager = losses_and_gradient(lambda z: reference.logistic_losses(z, real), logits)
    wide = losses_and_gradient(lambda z: reference.logistic_losses(z, real), logits.double())
    for name, value in ours.items():
        assert_close_to_float64(name, value, eager[name], wide[name])
    assert ours["losses"].dtype == torch.float32
    assert ours["dlogits"].dtype == dtype


def test_the_twin_is_binary_cross_entropy():
    logits = torch.randn(6, 1, device=DEVICE).double()
    labels = torch.tensor([1.0, 1, 1, 0, 0, 0], device=DEVICE).double()[:, None]
    each = nn.BCEWithLogitsLoss(reduction="none")

    def theirs(z):
        return each(z, labels).view(2, 3).mean(1)

    ours = losses_and_gradient(lambda z: reference.logistic_losses(z, [True, False]), logits)
    torch.testing.assert_close(ours, losses_and_gradient(theirs, logits))
    weights = 0.7 * torch.tensor([1.0, 2.0], device=DEVICE).double()
    backward = reference.logistic_losses_backward(weights, logits, [True, False])
    torch.testing.assert_close(backward, ours["dlogits"])


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("z", "real"), [(12.0, True), (-12.0, False), (80.0, True)])
def test_a_sure_and_right_logit_keeps_its_digits(z, real, impl):
    logits = torch.full((2, 1), z, device=DEVICE)
    found = losses_and_gradient(lambda x: logistic_losses(x, [real], impl=impl), logits, 1.0)
    exact = torch.tensor([-abs(z)], dtype=torch.float64).exp().log1p().float()
    torch.testing.assert_close(found["losses"].cpu(), exact, rtol=1e-6, atol=0)
    gradient = (-exact if real else exact) / 2
    expected = gradient.expand(2, 1)
    torch.testing.assert_close(found["dlogits"].cpu(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_logits_and_gradients_of_any_layout(impl):
    logits = torch.randn(2, 4, 2, device=DEVICE)[1, :, :1].requires_grad_()
    assert not logits.is_contiguous()
    losses = logistic_losses(logits, [True, False], impl=impl)
    torch.testing.assert_close(losses, reference.logistic_losses(logits, [True, False]))
    (summed,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (one_each,) = torch.autograd.grad(losses, logits, torch.ones(2, device=DEVICE))
    assert summed.equal(one_each)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_opcheck(impl):
    logits, labels = torch.randn(6, 1, device=DEVICE), [True, False]
    dlosses = torch.ones(2, device=DEVICE)
    torch.library.opcheck(api._logistic_losses_backward, (dlosses, logits, labels, impl))
    torch.library.opcheck(api._logistic_losses, (logits.requires_grad_(), labels, impl))


@pytest.mark.parametrize(
    ("logits", "real", "error", "message"),
    [
        (torch.ones(3, 2), [True], ValueError, r"\(3, 2\)"),
        (torch.ones(3), [True], ValueError, r"\(3,\)"),
        (torch.ones(0, 1), [True], ValueError, "empty"),
        (torch.ones(3, 1).double(), [True], TypeError, "float64"),
        (torch.ones(3, 1), [True, False], ValueError, "3 logits.*2 equal parts"),
        (torch.ones(3, 1), [], ValueError, "3 logits.*0 equal parts"),
    ],
)
def test_wrong_logits_are_refused(logits, real, error, message):
    with pytest.raises(error, match=message):
        logistic_losses(logits, real)
    with pytest.raises(ValueError, match="impl"):
        logistic_losses(torch.ones(3, 1), [True], impl="cuda")

import math

import pytest
import torch

from vgan_fast.losses import classify, discriminator_loss, generator_loss


def close(value):
    return pytest.approx(value.item(), rel=1e-5)


def test_cross_entropy_of_one_logit_against_the_closed_form():
    logits = torch.randn(50, 1) * 5
    probability = 1 / (1 + torch.exp(-logits.double()))
    torch.testing.assert_close(
        classify(logits, [True])[0].double(), -probability.log().mean(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        classify(logits, [False])[0].double(), -(1 - probability).log().mean(), rtol=1e-5, atol=0
    )


def test_two_logits_are_a_softmax_of_generated_and_real():
    logits = torch.randn(50, 2) * 5
    odds = logits.double()
    share = odds.exp() / odds.exp().sum(1, keepdim=True)
    torch.testing.assert_close(
        classify(logits, [False])[0].double(), -share[:, 0].log().mean(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        classify(logits, [True])[0].double(), -share[:, 1].log().mean(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("real", [True, False])
def test_confident_errors_stay_finite_with_finite_gradients(columns, real):
    logits = torch.tensor([[3e4, -3e4], [-3e4, 3e4]])[:, :columns].requires_grad_()
    loss = classify(logits, [real])[0]
    loss.backward()
    assert loss.item() == pytest.approx(3e4 * columns / 2, rel=1e-5)
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_scored_in_fp32():
    assert classify(torch.zeros(3, 1, dtype=torch.bfloat16), [True]).item() == pytest.approx(
        math.log(2), rel=1e-6
    )


def test_hinge_against_the_closed_form():
    real, fake = torch.tensor([[2.0], [0.5], [-1.0]]), torch.tensor([[-2.0], [-0.5], [1.0]])
    d_real, d_fake = discriminator_loss("hinge", torch.cat([real, fake]))
    assert d_real.item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert d_fake.item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert generator_loss("hinge", fake).item() == pytest.approx(0.5)


def test_each_player_wants_its_own_side():
    good, bad = torch.full((4, 1), 3.0), torch.full((4, 1), -3.0)
    right, wrong = torch.cat([good, bad]), torch.cat([bad, good])
    assert (
        discriminator_loss("cross-entropy", right) < discriminator_loss("cross-entropy", wrong)
    ).all()
    assert generator_loss("cross-entropy", good) < generator_loss("cross-entropy", bad)


@pytest.mark.parametrize("columns", [1, 2])
def test_parts_of_a_batch_are_scored_apart(columns):
    logits = torch.randn(6, columns)
    real, fake = classify(logits, [True, False])
    torch.testing.assert_close(real, classify(logits[:3], [True])[0])
    torch.testing.assert_close(fake, classify(logits[3:], [False])[0])

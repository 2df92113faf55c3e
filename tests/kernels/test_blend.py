import pytest
import torch

from vgan_fast.kernels.blend import mask_blend


def by_hand(head, background):
    """Paper equation 3, pixel by pixel in float64."""
    head, background = head.double(), background.double()
    mask = 1 / (1 + torch.exp(-head[:, 3]))
    video = torch.empty(head.shape[0], 3, *head.shape[2:], dtype=torch.float64)
    for t in range(head.shape[2]):
        for c in range(3):
            f, b = torch.tanh(head[:, c, t]), torch.tanh(background[:, c])
            video[:, c, t] = mask[:, t] * f + (1 - mask[:, t]) * b
    return video, mask.mean()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels-last", "strided"])
def test_values_follow_equation_3(shape, layout):
    n, t, h, w = shape
    head, background = torch.randn(n, 4, t, h, w), torch.randn(n, 3, h, w)
    if layout == "channels-last":
        head = head.contiguous(memory_format=torch.channels_last_3d)
    if layout == "strided":
        head = torch.randn(n, 4, t, h, 2 * w)[..., ::2]
    video, mean = mask_blend(head, background)
    expected, expected_mean = by_hand(head, background)
    assert video.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(video.double(), expected, rtol=0, atol=5e-7)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)


def test_gradients_match_finite_differences_of_the_equation():
    head = torch.randn(2, 4, 2, 3, 2, dtype=torch.float64)
    background = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    weight = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64)

    def objective(head, background):
        video, mean = by_hand(head, background)
        return (video * weight).sum() + 3 * mean

    inputs = [x.float().requires_grad_() for x in (head, background)]
    video, mean = mask_blend(*inputs)
    gradients = torch.autograd.grad((video * weight.float()).sum() + 3 * mean, inputs)
    head, background = (x.detach().double() for x in inputs)
    for which, gradient in zip((head, background), gradients, strict=True):
        numeric = torch.empty_like(which)
        for i in range(which.numel()):
            kept = which.view(-1)[i].item()
            which.view(-1)[i] = kept + 1e-5
            up = objective(head, background)
            which.view(-1)[i] = kept - 1e-5
            numeric.view(-1)[i] = (up - objective(head, background)) / 2e-5
            which.view(-1)[i] = kept
        torch.testing.assert_close(gradient.double(), numeric, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_blended_in_fp32():
    head, background = torch.randn(2, 4, 3, 4, 5).bfloat16(), torch.randn(2, 3, 4, 5).bfloat16()
    torch.testing.assert_close(
        mask_blend(head, background)[0].double(), by_hand(head, background)[0], rtol=0, atol=5e-7
    )


@pytest.mark.parametrize(
    ("head", "background"),
    [
        ((2, 3, 4, 4, 4), (2, 3, 4, 4)),
        ((2, 4, 4, 4, 4), (1, 3, 4, 4)),
        ((1, 4, 4, 4, 4), (1, 3, 4, 5)),
    ],
    ids=["head channels", "batch", "width"],
)
def test_shapes_that_do_not_fit_are_refused_with_both_sizes(head, background):
    with pytest.raises(ValueError, match=r"got .* and "):
        mask_blend(torch.randn(head), torch.randn(background))

"""What hidden units of an image encoder see: the images each fires on most (paper, figure 6)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.errors import UserError
from vgan_fast.models import FutureGenerator
from vgan_fast.pictures import as_frames, film_strip

SHOWN = 8  # images in a row
BATCH = 64
HIGH = 0.5  # of a unit's strongest response to an image: what exceeds it is highlighted
DIMMED = 0.25  # of the brightness, elsewhere


@torch.no_grad()
def favourites(
    generator: FutureGenerator, frames: Tensor, *, layer: int | None = None, rows: int = 8
) -> np.ndarray:
    """Draw for some units the images that each fires on most, the region of its response lit.

    The units shown are those that tell images apart best: with the largest spread over the images
    of their strongest response. In a row an image appears once.

    Args:
        generator: its encoder is looked at, in evaluation mode.
        frames: (N, 3, k, H, W) in [-1, 1]; the last of the k is drawn.
        layer: convolution of the encoder, from 1; None is the last whose response is a grid.
        rows: units shown.

    Returns:
        Picture uint8 (H, W, 3): a row for each unit, strongest response first.

    Raises:
        UserError: when the encoder has no such layer.
    """
    responses = _responses(generator, frames, layer)
    strongest = responses.amax((2, 3))  # (N, units)
    units = strongest.std(0, correction=0).topk(min(rows, responses.shape[1])).indices
    images = as_frames(frames[:, :, -1:])[:, 0]
    shown = []
    for unit in units:
        best = strongest[:, unit].topk(min(SHOWN, len(frames))).indices
        maps = responses[best, unit][:, None]
        lit = F.interpolate(maps, frames.shape[-2:], mode="bilinear", align_corners=False)
        high = lit > HIGH * lit.amax((2, 3), keepdim=True)
        light = torch.where(high, 1.0, DIMMED)[:, 0, :, :, None].cpu().numpy()
        shown.append((images[best.cpu().numpy()] * light).round().astype(np.uint8))
    return film_strip(np.stack(shown), shown=SHOWN)


def _responses(generator: FutureGenerator, frames: Tensor, layer: int | None) -> Tensor:
    """Activations (N, units, h, w) of the encoder behind its convolution number `layer`, fp32."""
    ends = [i + 1 for i, module in enumerate(generator.encoder) if isinstance(module, nn.ReLU)]
    number = len(ends) if layer is None else layer
    if number > len(ends):
        raise UserError(f"--units-layer {number}: the encoder has {len(ends)} such layers")
    body = generator.encoder[: ends[number - 1]]
    device = next(body.parameters()).device
    training = body.training
    body.eval()
    found = [body(batch.flatten(1, 2).float().to(device)).float() for batch in frames.split(BATCH)]
    body.train(training)
    return torch.cat(found)

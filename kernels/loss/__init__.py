"""The logistic loss of one logit: softplus and mean in one pass."""

from .api import logistic_losses

__all__ = ["logistic_losses"]

"""Mask blend: a foreground over a still background (paper equation 3)."""

from .api import blend, mask_blend

__all__ = ["blend", "mask_blend"]

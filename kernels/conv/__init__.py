"""Convolutions between a coarse and a fine grid as implicit matrix products."""

from .api import convolve, convolve_folded, masked_convolve, norm_convolve, project

__all__ = ["convolve", "convolve_folded", "masked_convolve", "norm_convolve", "project"]

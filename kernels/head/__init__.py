"""The generator's head: last transposed convolution, activations and blend in one op."""

from .api import head_blend, head_tanh

__all__ = ["head_blend", "head_tanh"]

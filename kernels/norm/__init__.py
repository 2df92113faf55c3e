"""Batch norm and (leaky) ReLU in one op."""

from .api import norm_act

__all__ = ["norm_act"]

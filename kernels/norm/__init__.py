"""Batch norm and (leaky) ReLU, and the statistics that they take."""

from .api import FEW_ROWS, batch_norm_act, batch_statistics, norm_act, track_statistics

__all__ = ["FEW_ROWS", "batch_norm_act", "batch_statistics", "norm_act", "track_statistics"]

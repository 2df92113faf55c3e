"""One step of Langevin dynamics: drift, reference, noise, fixed pixels and bounds in one pass."""

from .api import langevin_step, normals

__all__ = ["langevin_step", "normals"]

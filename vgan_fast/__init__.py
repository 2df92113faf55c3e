"""Generative models of short video, trained as fast as the hardware allows.

Importing this package loads neither torch, Triton nor DALI; each submodule imports what it needs.
"""

__version__ = "0.1.0"

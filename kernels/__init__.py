"""Tensor operations of the models, one a file, in plain PyTorch: the key to check kernels by."""

if __name__ != "vgan_fast.kernels":
    raise ImportError("import this package as vgan_fast.kernels, not as kernels")

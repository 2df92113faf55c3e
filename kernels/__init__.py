"""Tensor operations of the models: each file holds an op and, beside it, its plain PyTorch twin."""

if __name__ != "vgan_fast.kernels":
    raise ImportError("import this package as vgan_fast.kernels, not as kernels")

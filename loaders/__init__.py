"""From bytes on disk to batches of clips on the training device."""

if __name__ != "vgan_fast.loaders":
    raise ImportError("import this package as vgan_fast.loaders, not as loaders")

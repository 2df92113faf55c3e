"""The DALI graph from stored frames, or from JPEG strips, to batches of clips."""

from __future__ import annotations

from nvidia.dali import fn, pipeline_def, types

# A decoder says nothing of a JPEG whose pixels stop early: it fills the rest with mid-grey, block
# by block, and the end marker may be there all the same.
BLANK = 128
BLOCK = 8  # rows


@pipeline_def
def clip_graph(read, *, strips: bool, size: int, device: str):
    """Build the graph; its output is uint8 (T, size, size, 3) a sample, RGB, layout FHWC.

    For strips two more outputs follow, uint8 scalars: the least and the largest value in the last
    rows of the strip. Both are `BLANK` where the JPEG's pixels end early.

    Args:
        read: called with 0, 1, 2, …; returns lists of one array a sample. For videos: frames,
            uint8 (F, H, W, 3), and the order. For strips: the JPEG's bytes, uint8 (bytes,), the
            shape to cut it into, int32 (F, side, side, 3), and the order.
            The order, int32 (T,), names the frame to show at each of the T moments.
        strips: which of the two `read` returns.
        size: side of the clips in pixels.
        device: "cpu" or "gpu": where decoding (strips) and scaling run.
    """
    if strips:
        data, shape, order = fn.external_source(
            read, num_outputs=3, dtype=[types.UINT8, types.INT32, types.INT32], ndim=[1, 1, 1]
        )
        # A rotation tag would turn the strip on its side: its frames are stacked as stored.
        image = fn.decoders.image(
            data, device="mixed" if device == "gpu" else "cpu", adjust_orientation=False
        )
        frames = fn.reshape(image, shape=shape, layout="FHWC")
    else:
        frames, order = fn.external_source(
            read, num_outputs=2, dtype=[types.UINT8, types.INT32], layout=["FHWC", ""]
        )
        frames = frames.gpu() if device == "gpu" else frames
    frames = fn.sequence_rearrange(frames, new_order=order)
    frames = fn.resize(frames, resize_shorter=size, antialias=True)
    clips = fn.crop(frames, crop=(size, size))
    if not strips:
        return clips
    tail = image[-BLOCK:]
    return clips, fn.reductions.min(tail), fn.reductions.max(tail)

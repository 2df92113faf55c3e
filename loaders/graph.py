"""The DALI graphs: from stored frames or encoded strips to squares, from squares to clips."""

from __future__ import annotations

from nvidia.dali import fn, pipeline_def, types

from .augment import Augmentation


@pipeline_def
def file_graph(
    read,
    vary,
    *,
    encoded: bool,
    sideways: bool,
    antialias: bool,
    size: int,
    augmentation: Augmentation,
    device: str,
):
    """Build the graph from files; its output is uint8 (T, size, size, 3) a sample, RGB, FHWC.

    Args:
        read: called with 0, 1, 2, …; returns lists of one array a sample: frames, uint8
            (T, H, W, 3). If `encoded`: the bytes of a strip, uint8 (bytes,); if `sideways`, the
            shape of the whole, int32 (5,), as frames in a column, height, frames in a row, width,
            3; the shape of the stack, int32 (4,), as frames, height, width, 3; and the order,
            int32 (T,): the frame to show at each moment. The strips must be whole: the decoder
            fills what is missing with grey, and some damage kills it.
        vary: called likewise if anything varies; returns a list for each of `augmentation.varied`.
        encoded: which of the two `read` returns.
        sideways: whether some strips have their frames side by side.
        antialias: whether some frames have more than two pixels for each that is kept. Up to two,
            linear interpolation lets none out, and at two it is their plain mean.
        size: side of the clips in pixels.
        augmentation: what varies.
        device: "cpu" or "gpu": where decoding (strips), scaling and augmentation run.
    """
    if encoded:
        count = 4 if sideways else 3
        data, *grid, stack, order = fn.external_source(
            read, num_outputs=count, dtype=[types.UINT8] + [types.INT32] * (count - 1), ndim=1
        )
        # A rotation tag would turn the strip on its side: its frames lie as stored. Fancy
        # upsampling is what CPU decoders do, and without the hardware decoder, which takes a part
        # of each batch, pixels do not depend on the batch.
        image = fn.decoders.image(
            data,
            device="mixed" if device == "gpu" else "cpu",
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            hw_decoder_load=0.0,
        )
        if sideways:
            # Frames below each other are one column, frames side by side one row.
            image = fn.transpose(fn.reshape(image, shape=grid[0]), perm=[0, 2, 1, 3, 4])
        frames = fn.reshape(image, shape=stack, layout="FHWC")
        frames = fn.sequence_rearrange(frames, new_order=order)
    else:
        (frames,) = fn.external_source(read, num_outputs=1, dtype=types.UINT8, layout="FHWC")
        frames = frames.gpu() if device == "gpu" else frames
    side = augmentation.side(size)
    squares = fn.resize(frames, resize_shorter=side, antialias=antialias)
    squares = fn.crop(squares, crop=(side, side))
    return _augmented(squares, vary, size, augmentation)


@pipeline_def
def square_graph(read, vary, *, size: int, augmentation: Augmentation, device: str):
    """Build the graph from square frames in memory; its output is as `file_graph`'s.

    Args:
        read: called with 0, 1, 2, …; returns a list of one uint8 (T, side, side, 3) a sample, on
            `device`.
        vary: as in `file_graph`.
        size: side of the clips in pixels.
        augmentation: what varies.
        device: "cpu" or "gpu".
    """
    (squares,) = fn.external_source(
        read, num_outputs=1, dtype=types.UINT8, layout="FHWC", device=device
    )
    return _augmented(squares, vary, size, augmentation)


def _augmented(clips, vary, size: int, augmentation: Augmentation):
    """Crop, mirror and recolour; the operators give all frames of a sequence the same."""
    names = augmentation.varied
    if not names:
        return clips
    dtypes = [types.INT32 if name == "mirror" else types.FLOAT for name in names]
    drawn = dict(
        zip(names, fn.external_source(vary, num_outputs=len(names), dtype=dtypes), strict=True)
    )
    if "top_left" in drawn:
        clips = fn.resize(
            clips,
            roi_start=drawn["top_left"],
            roi_end=drawn["bottom_right"],
            roi_relative=True,
            size=(size, size),
            antialias=augmentation.side(size) > 2 * size,
        )
    if "mirror" in drawn:
        clips = fn.flip(clips, horizontal=drawn["mirror"])
    if "hue" in drawn:
        colours = {name: drawn[name] for name in ("brightness", "contrast", "saturation", "hue")}
        clips = fn.color_twist(clips, **colours)
    return clips

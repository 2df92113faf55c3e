"""The mask blend in Triton: a forward and a backward kernel, from logits or from streams.

Each program owns BLOCK pixels of one clip and walks over frames. No kernel uses atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

# Pixels a program: 8 a thread, so that the planes of a 16-bit video move 16 bytes at a time.
BLOCK, WARPS = 256, 1
# Cells by bytes of a value: 4 pixels of 4 bytes a thread are 16 bytes, too, and 8 of them spill.
CELLS_WARPS = {2: WARPS, 4: 2}
# Frames of a program of the forward. All of them would leave the GPU at batch 64 with 8 warps a
# processor; few of them would read and activate the background anew too often.
FRAMES = 8
SUMS = 1024  # partial sums merged at a time


def mask_blend(head: Tensor, background: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch the forward on logits: head stored channels-last, background contiguous."""
    dispatch.launches["mask_blend_forward"] += 1
    return _launch_forward(head, head, background, dtype, logits=True)


def blend(foreground: Tensor, mask: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the forward on activated streams, all contiguous."""
    dispatch.launches["blend_forward"] += 1
    return _launch_forward(foreground, mask, background, foreground.dtype, logits=False)


def mask_blend_backward(
    dvideo: Tensor, dmean: Tensor, head: Tensor, background: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the backward on logits; `dvideo` contiguous, the rest as in the forward."""
    dispatch.launches["mask_blend_backward"] += 1
    dhead = torch.empty(
        head.shape, dtype=head.dtype, device=head.device, memory_format=torch.channels_last_3d
    )
    dbackground = torch.empty(background.shape, dtype=background.dtype, device=head.device)
    _launch_backward(dvideo, dmean, head, head, background, dhead, dhead, dbackground, logits=True)
    return dhead, dbackground


def mask_blend_backward_in_cells(
    dvideo: Tensor, dmean: Tensor, head: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward on logits, whose gradients it writes in cells; T, H and W even.

    Returns:
        The gradients of the logits, (N, 32, T/2+1, H/2+1, W/2+1) stored channels-last, laid out as
        `vgan_fast.kernels.frames` describes, zero outside the clip; their sums over everything but
        the channels, (4,) fp32; and the gradient of the background.
    """
    dispatch.launches["mask_blend_backward_in_cells"] += 1
    n, _, *sizes = head.shape
    assert not any(size % 2 for size in sizes), f"odd sizes {sizes}"
    cells = torch.empty(
        (n, *(size // 2 + 1 for size in sizes), 32), dtype=head.dtype, device=head.device
    )
    sums = torch.empty((_pixel_blocks(head), 4), dtype=torch.float32, device=head.device)
    dbackground = torch.empty(background.shape, dtype=background.dtype, device=head.device)
    _launch_backward(
        dvideo, dmean, head, head, background, cells, cells, dbackground, logits=True, sums=sums
    )
    return cells.permute(0, 4, 1, 2, 3), sums.sum(0), dbackground


def blend_backward(
    dvideo: Tensor, dmean: Tensor, foreground: Tensor, mask: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward on activated streams; everything contiguous."""
    dispatch.launches["blend_backward"] += 1
    streams = foreground, mask, background
    gradients = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in streams)
    _launch_backward(dvideo, dmean, *streams, *gradients, logits=False)
    return gradients


def _launch_forward(head, mask, background, dtype, logits):
    n, _, frames, h, w = head.shape
    blocks, chunks = triton.cdiv(h * w, BLOCK), triton.cdiv(frames, FRAMES)
    video = torch.empty(n, 3, frames, h, w, dtype=dtype, device=head.device)
    partials = torch.empty(n * chunks * blocks, dtype=torch.float32, device=head.device)
    _forward[(partials.numel(),)](
        dispatch.aligned(head),
        dispatch.aligned(mask),
        dispatch.aligned(background),
        video,
        partials,
        frames,
        h * w,
        LOGITS=logits,
        FRAMES=FRAMES,
        BLOCK=BLOCK,
        num_warps=WARPS,
        num_stages=1,
        **dispatch.OPTIONS,
    )
    return video, mean_of(partials, n * frames * h * w)


def mean_of(partials: Tensor, count: int) -> Tensor:
    """Scalar fp32: partial sums, (parts,) fp32, added up in float64, over how many they sum."""
    mean = torch.empty((), dtype=torch.float32, device=partials.device)
    _mean[(1,)](
        partials,
        mean,
        partials.numel(),
        count,
        BLOCK=SUMS,
        num_warps=4,
        num_stages=1,
        **dispatch.OPTIONS,
    )
    return mean


def _pixel_blocks(clip: Tensor) -> int:
    n, _, _, h, w = clip.shape
    return n * triton.cdiv(h * w, BLOCK)


def _launch_backward(
    dvideo, dmean, head, mask, background, dhead, dmask, dbackground, logits, sums=None
) -> None:
    n, _, frames, h, w = dvideo.shape
    _backward[(_pixel_blocks(dvideo),)](
        dispatch.aligned(dvideo),
        dmean,
        dispatch.aligned(head),
        dispatch.aligned(mask),
        dispatch.aligned(background),
        dhead,
        dmask,
        dbackground,
        sums,
        frames,
        h * w,
        w,
        1 / (n * frames * h * w),
        LOGITS=logits,
        CELLS=sums is not None,
        BLOCK=BLOCK,
        num_warps=WARPS if sums is None else CELLS_WARPS[head.element_size()],
        num_stages=1,
        **dispatch.OPTIONS,
    )


@triton.jit(do_not_specialize=["frames"])
def _forward(
    head,  # (N, T, HW, 4) logits, or with LOGITS off the foreground, (N, 3, T, HW)
    mask,  # unused, or (N, 1, T, HW)
    background,  # (N, 3, HW)
    video,  # (N, 3, T, HW), written
    partials,  # (programs,) fp32, written: sum of the mask over a program's pixels
    frames,
    pixels,
    LOGITS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(pixels, BLOCK)
    chunks = tl.cdiv(frames, FRAMES)
    program = tl.program_id(0)
    start = (program % blocks) * BLOCK
    first = (program // blocks % chunks) * FRAMES
    n = (program // (blocks * chunks)).to(tl.int64)
    plane = frames.to(tl.int64) * pixels

    b0, b1, b2 = _load_background(background + 3 * n * pixels, pixels, start, LOGITS, BLOCK)
    inside = start + tl.arange(0, BLOCK) < pixels
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(first, tl.minimum(first + FRAMES, frames)):
        f0, f1, f2, m = _load_frame(head, mask, n, t, frames, pixels, start, LOGITS, BLOCK)
        total += tl.where(inside, m, 0.0)
        g0, g1, g2 = b0 + m * (f0 - b0), b1 + m * (f1 - b1), b2 + m * (f2 - b2)
        _store3(video + (3 * n * frames + t) * pixels, plane, g0, g1, g2, start, pixels, BLOCK)
    tl.store(partials + program, tl.sum(total))


@triton.jit(do_not_specialize=["frames"])
def _backward(
    dvideo,  # (N, 3, T, HW)
    dmean,  # () fp32
    head,  # (N, T, HW, 4) logits, or with LOGITS off the foreground, (N, 3, T, HW)
    mask,  # unused, or (N, 1, T, HW)
    background,  # (N, 3, HW)
    dhead,  # as head, or with CELLS (N, T / 2 + 1, H / 2 + 1, W / 2 + 1, 32), written
    dmask,  # as mask, written
    dbackground,  # (N, 3, HW), written
    sums,  # none, or with CELLS (programs, 4) fp32, written: of dhead over a program's pixels
    frames,
    pixels,
    width,
    share,  # of a pixel in the mask's mean
    LOGITS: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    start = (program % blocks) * BLOCK
    n = (program // blocks).to(tl.int64)
    plane = frames.to(tl.int64) * pixels

    b0, b1, b2 = _load_background(background + 3 * n * pixels, pixels, start, LOGITS, BLOCK)
    from_mean = tl.load(dmean) * share
    db0 = tl.zeros((BLOCK,), tl.float32)
    db1 = tl.zeros((BLOCK,), tl.float32)
    db2 = tl.zeros((BLOCK,), tl.float32)
    if CELLS:
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        y, x = at // width, at % width
        sum0 = tl.zeros((BLOCK,), tl.float32)
        sum1 = tl.zeros((BLOCK,), tl.float32)
        sum2 = tl.zeros((BLOCK,), tl.float32)
        sum3 = tl.zeros((BLOCK,), tl.float32)
        cells = dhead + n * (frames // 2 + 1) * _cell_plane(pixels, width)
        _clear_beyond(cells, y, x, inside, frames, pixels, width)
        slot = _slot(y, x, 0, 0, width)
    # At batch 64 a processor has 8 warps: loads must run two frames ahead to hide their latency.
    for t in tl.range(frames, num_stages=3):
        row = (3 * n * frames + t) * pixels
        f0, f1, f2, m = _load_frame(head, mask, n, t, frames, pixels, start, LOGITS, BLOCK)
        dv0, dv1, dv2 = _load3(dvideo + row, plane, start, pixels, BLOCK)
        db0 += (1 - m) * dv0
        db1 += (1 - m) * dv1
        db2 += (1 - m) * dv2
        dm = dv0 * (f0 - b0) + dv1 * (f1 - b1) + dv2 * (f2 - b2) + from_mean
        df0, df1, df2 = m * dv0, m * dv1, m * dv2
        if LOGITS:
            df0 *= 1 - f0 * f0
            df1 *= 1 - f1 * f1
            df2 *= 1 - f2 * f2
            dm *= m * (1 - m)
            quads = tl.join(tl.join(df0, df2), tl.join(df1, dm))
            if CELLS:
                sum0 += df0
                sum1 += df1
                sum2 += df2
                sum3 += dm
                frame = cells + _cell_frame(t, pixels, width)
                quads = tl.reshape(quads, (BLOCK, 4)).to(dhead.dtype.element_ty)
                tl.store(frame + slot, quads, mask=inside[:, None])
            else:
                quads = tl.reshape(quads, (4 * BLOCK,))
                frame = dhead + (n * frames + t) * pixels * 4
                _store(frame, quads, 4 * start, 4 * pixels, 4 * BLOCK)
        else:
            _store3(dhead + row, plane, df0, df1, df2, start, pixels, BLOCK)
            _store(dmask + (n * frames + t) * pixels, dm, start, pixels, BLOCK)
    if LOGITS:
        db0 *= 1 - b0 * b0
        db1 *= 1 - b1 * b1
        db2 *= 1 - b2 * b2
    _store3(dbackground + 3 * n * pixels, pixels, db0, db1, db2, start, pixels, BLOCK)
    if CELLS:
        tl.store(sums + 4 * program, tl.sum(sum0))
        tl.store(sums + 4 * program + 1, tl.sum(sum1))
        tl.store(sums + 4 * program + 2, tl.sum(sum2))
        # The mean's share reaches the mask beyond the last pixel, too.
        tl.store(sums + 4 * program + 3, tl.sum(tl.where(inside, sum3, 0.0)))


@triton.jit(do_not_specialize=["count", "elements"])
def _mean(
    partials,  # (count,) fp32
    mean,  # () fp32, written
    count,
    elements,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(partials + at, mask=at < count, other=0.0)
    tl.store(mean, (tl.sum(total) / elements).to(tl.float32))


@triton.jit
def _load(row, start, size, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < size, other=0.0).to(tl.float32)


@triton.jit
def _load3(row, plane, start, size, BLOCK: tl.constexpr):
    """The same row of three planes."""
    x0 = _load(row, start, size, BLOCK)
    row += plane
    x1 = _load(row, start, size, BLOCK)
    row += plane
    return x0, x1, _load(row, start, size, BLOCK)


@triton.jit
def _store(row, x, start, size, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    tl.store(row + at, x.to(row.dtype.element_ty), mask=at < size)


@triton.jit
def _store3(row, plane, x0, x1, x2, start, size, BLOCK: tl.constexpr):
    _store(row, x0, start, size, BLOCK)
    row += plane
    _store(row, x1, start, size, BLOCK)
    row += plane
    _store(row, x2, start, size, BLOCK)


@triton.jit
def _cell_plane(pixels, width):
    """Values of a plane of cells."""
    return (pixels // width // 2 + 1).to(tl.int64) * (width // 2 + 1) * 32


@triton.jit
def _cell_frame(t, pixels, width):
    """Where frame t starts, from -1 on: cells hold frames 2i - 1 and 2i."""
    return (t + 1) // 2 * _cell_plane(pixels, width) + (t + 1) % 2 * 16


@triton.jit
def _slot(y, x, BEYOND_Y: tl.constexpr, BEYOND_X: tl.constexpr, width):
    """Where four channels lie in a frame of cells: of pixels, or of those beyond the edge beside.

    A pixel at an edge shares its cell with the one beyond.
    """
    cell = (y + 1) // 2 * (width // 2 + 1) + (x + 1) // 2
    slot = cell * 32 + (y + 1 + BEYOND_Y) % 2 * 8 + (x + 1 + BEYOND_X) % 2 * 4
    return slot[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def _clear_beyond(cells, y, x, inside, frames, pixels, width):
    """Store zeros beside pixels at an edge, and before and after all pixels."""
    edge_y = inside & ((y == 0) | (y == pixels // width - 1))
    edge_x = inside & ((x == 0) | (x == width - 1))
    here, corner = _slot(y, x, 0, 0, width), _slot(y, x, 1, 1, width)
    above, beside = _slot(y, x, 1, 0, width), _slot(y, x, 0, 1, width)
    zeros = tl.zeros(here.shape, cells.dtype.element_ty)
    for t in range(-1, frames + 1):
        frame = cells + _cell_frame(t, pixels, width)
        tl.store(frame + here, zeros, mask=(inside & ((t < 0) | (t == frames)))[:, None])
        tl.store(frame + above, zeros, mask=edge_y[:, None])
        tl.store(frame + beside, zeros, mask=edge_x[:, None])
        tl.store(frame + corner, zeros, mask=(edge_y & edge_x)[:, None])


@triton.jit
def _load_background(row, pixels, start, LOGITS: tl.constexpr, BLOCK: tl.constexpr):
    b0, b1, b2 = _load3(row, pixels, start, pixels, BLOCK)
    if LOGITS:
        b0, b1, b2 = _tanh(b0), _tanh(b1), _tanh(b2)
    return b0, b1, b2


@triton.jit
def _load_frame(head, mask, n, t, frames, pixels, start, LOGITS: tl.constexpr, BLOCK: tl.constexpr):
    """Foreground and mask of one frame, activated."""
    if LOGITS:
        # Loaded flat and split in registers: a load of (BLOCK, 4) is 4 values wide, not 8.
        row = head + (n * frames + t) * pixels * 4
        quads = _load(row, 4 * start, 4 * pixels, 4 * BLOCK)
        even, odd = tl.split(tl.reshape(quads, (BLOCK, 2, 2)))
        f0, f2 = tl.split(even)
        f1, m = tl.split(odd)
        f0, f1, f2, m = _tanh(f0), _tanh(f1), _tanh(f2), _sigmoid(m)
    else:
        plane = frames.to(tl.int64) * pixels
        f0, f1, f2 = _load3(head + (3 * n * frames + t) * pixels, plane, start, pixels, BLOCK)
        m = _load(mask + (n * frames + t) * pixels, start, pixels, BLOCK)
    return f0, f1, f2, m


@triton.jit
def _tanh(x):
    # Exact to the rounding of 1, like the blend; near 0 not relatively.
    return 1 - 2 / (1 + tl.exp2(x * 2.8853900817779268))  # 2 * log2(e)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x * -1.4426950408889634))


def aot_cases() -> list[AotCase]:
    """Both kernels at the paper's sizes: batch 64, 32 frames of 64x64, in bf16 and fp32.

    fp16 differs from bf16 in the names of the conversions alone.
    """
    cases = []
    backward_sizes = {"frames": "i32", "pixels": "i32", "width": "i32", "share": "fp32"}
    for logits, dtype, video in (
        (True, "bf16", "bf16"),
        (True, "bf16", "fp32"),
        (True, "fp32", "fp32"),
        (False, "bf16", "bf16"),
        (False, "fp32", "fp32"),
    ):
        source = f"{dtype} {'logits' if logits else 'streams'}"
        types = dict.fromkeys(("head", "mask", "background"), f"*{dtype}") | {"video": f"*{video}"}
        sizes = {"frames": "i32", "pixels": "i32"}
        constants = {"LOGITS": logits, "BLOCK": BLOCK}
        cases += [
            AotCase(
                f"blend forward, {source}, {video} video",
                _forward,
                types | {"partials": "*fp32"} | sizes,
                constants | {"FRAMES": FRAMES},
                WARPS,
                1,
                "elementwise",
                odd=("frames",),
                narrow={4: 1},  # the partial sum
            ),
            *(
                AotCase(
                    f"blend backward, {source}{' in cells' * cells}, {video} video",
                    _backward,
                    {"dvideo": f"*{video}", "dmean": "*fp32"}
                    | {name: kind for name, kind in types.items() if name != "video"}
                    | dict.fromkeys(("dhead", "dmask", "dbackground"), f"*{dtype}")
                    | ({"sums": "*fp32"} if cells else {})
                    | backward_sizes,
                    constants | {"CELLS": cells} | ({} if cells else {"sums": None}),
                    CELLS_WARPS[2 if dtype == "bf16" else 4] if cells else WARPS,
                    1,
                    "elementwise",
                    odd=("frames",),
                    # The mean's gradient, and the sums. Two pixels side by side in the clip lie in
                    # two cells, 8 bytes of bf16 each: 8 pixels a thread, once and four times
                    # beyond edges.
                    narrow={4: 5, 8: 40 if dtype == "bf16" else 0} if cells else {4: 1},
                )
                for cells in ((False, True) if logits else (False,))
            ),
        ]
    cases.append(
        AotCase(
            "blend, mean of the mask",
            _mean,
            {"partials": "*fp32", "mean": "*fp32", "count": "i32", "elements": "i32"},
            {"BLOCK": SUMS},
            4,
            1,
            "small",
            odd=("count", "elements"),
        )
    )
    return cases

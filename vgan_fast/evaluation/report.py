"""A result as tables, and clips side by side with their names."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vgan_fast.evaluation.result import Number, Protocol, Result
from vgan_fast.pictures import as_frames, film_strip, stream_rows

# The paper's Table 1, mean over its scenes, in per cent: what people preferred, of other data.
HUMAN = {
    ("two-stream", "autoencoder"): 82,
    ("one-stream", "autoencoder"): 82,
    ("two-stream", "one-stream"): 53,
    ("two-stream", "real"): 18,
    ("one-stream", "real"): 16,
    ("autoencoder", "real"): 3,
}
NAMED = 22  # pixels of height for names
MARGIN = 110  # pixels of width for names


def as_tables(result: Result) -> str:
    """The result in Markdown: protocol, numbers of each model, preferences of each pair."""
    label = result.protocol.detector
    statistics = list(dict.fromkeys(name for row in result.rows for name in row.statistics))
    head = ["", "step", f"Fréchet[{label}]"]
    scored = any(row.inception for row in result.rows)
    head += [f"Inception[{label}]"] * scored + statistics
    kinds = list(dict.fromkeys(kind for row in result.rows for kind in row.nearest))
    for kind in kinds:
        of = f"features {label}" if kind == "features" else kind
        head += [f"nearest training clip / usual ({of})", f"closer than any ({of})"]
    lines = [described(result.protocol), "", _line(head), "|" + "---|" * len(head)]
    for row in result.rows:
        cells = [row.name, "" if row.step is None else f"{row.step:,}", _shown(row.frechet)]
        if scored:
            cells.append(_shown(row.inception) if row.inception else "")
        cells += [f"{row.statistics[s]:.3g}" if s in row.statistics else "" for s in statistics]
        for kind in kinds:
            near = row.nearest.get(kind)
            cells += [f"{near['median ratio']:.2f}", f"{near['closer']:.0%}"] if near else ["", ""]
        lines.append(_line(cells))
    if result.preferences:
        lines += [
            "",
            _line(
                [
                    "a clip of the first looks more real than one of the second",
                    f"to the detector, %[{label}]",
                    "to people, %, of other data (paper, Table 1)",
                ]
            ),
            "|---|---|---|",
        ]
    for p in result.preferences:
        share = Number(*(100 * v for v in (p.share.value, p.share.low, p.share.high, p.share.bias)))
        human = HUMAN.get((p.first, p.second), "")
        lines.append(_line([f"{p.first} over {p.second}", _percent(share), str(human)]))
    return "\n".join([*lines, "", *_notes(result), ""])


def described(protocol: Protocol) -> str:
    """The protocol in a sentence."""
    which = "held out" if protocol.held_out else "none held out from training"
    resized = f", frames scaled to {protocol.resize}" if protocol.resize else ""
    return (
        f"Protocol: {protocol.data} (fingerprint {protocol.fingerprint[:12]}), split "
        f"{protocol.split} ({which}), {protocol.count} clips of {protocol.frames} frames of "
        f"{protocol.size}x{protocol.size} a set, seed {protocol.seed}; detector "
        f"{protocol.detector}{resized}, SHA-256 {protocol.detector_sha256}."
    )


def side_by_side(clips: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """A film strip (H, W, 3) and an animation (T, H, W, 3), uint8, of named clips.

    Args:
        clips: (N, 3, T, H, W) in [-1, 1] by name: rows of the strip, columns of the animation.
            The strip has half of them.
    """
    strip = film_strip(as_frames(torch.cat([of[: -(-len(of) // 2)] for of in clips.values()])))
    rows = (len(strip) - 2) // len(clips)
    page = np.full((len(strip), strip.shape[1] + MARGIN, 3), 255, np.uint8)
    page[:, MARGIN:] = strip
    places = [(4, 2 + i * rows + rows // 2 - 8) for i in range(len(clips))]
    moving = stream_rows(clips, len(next(iter(clips.values()))))
    columns = (moving.shape[2] - 2) // len(clips)
    heading = np.full((NAMED, moving.shape[2], 3), 255, np.uint8)
    heading = _written(heading, list(clips), [(4 + i * columns, 4) for i in range(len(clips))])
    above = np.broadcast_to(heading, (len(moving), *heading.shape))
    return _written(page, list(clips), places), np.concatenate([above, moving], axis=1)


def pairs(samples: Tensor, training: Tensor) -> np.ndarray:
    """Film strip uint8 (H, W, 3): each sample above its nearest training clip.

    Args:
        samples: (N, 3, T, H, W) in [-1, 1].
        training: of the same shape, in the same order.
    """
    return film_strip(as_frames(torch.stack([samples, training], dim=1).flatten(0, 1)))


def _notes(result: Result) -> list[str]:
    intervals = (
        f"Brackets: 95 % bootstrap intervals over clips ({result.protocol.resamples} resamples of "
        "distances, 1,000 at least of shares), centred on the estimate. The row of real clips is "
        "the floor: as many other real clips, against the same reference."
    )
    meaning = (
        "More real: the log density under a Gaussian of the detector's features (fitted to half of "
        "the reference clips, covariance shrunk by a tenth towards its diagonal) is nearer to the "
        "median of the other half. It is no human judgement."
    )
    return [intervals, *([meaning] if result.preferences else [])]


def _written(page: np.ndarray, names: list[str], places: list[tuple[int, int]]) -> np.ndarray:
    image = Image.fromarray(page)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for name, place in zip(names, places, strict=True):
        draw.text(place, name, fill=(0, 0, 0), font=font)
    return np.asarray(image)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(number: Number) -> str:
    return f"{number.value:.4g} [{number.low:.4g}, {number.high:.4g}]"


def _percent(number: Number) -> str:
    return f"{number.value:.1f} [{number.low:.1f}, {number.high:.1f}]"

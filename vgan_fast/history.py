"""How a run went: its losses, and the same samples as they changed."""

import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vgan_fast.errors import UserError
from vgan_fast.loaders.decoders import check_size

STRIPS = 6  # pictures of samples beneath the losses, from the first to the last
_ALL = {"scalars": 0, "images": 0}  # events kept: every one


def draw_history(run: Path) -> np.ndarray:
    """Draw a run of `vgan_fast.train`: each loss by the step, and samples of the same codes.

    Args:
        run: folder of the run: TensorBoard's event files and `pictures`.

    Returns:
        Picture uint8 (H, W, 3).

    Raises:
        UserError: when the folder holds no run that lasted, or matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "a picture of a run's history needs matplotlib: pip install 'vgan_fast[experiments]'"
        ) from error
    if not run.is_dir():
        raise UserError(f"{run}: no such run; give the folder of a run of vgan_fast.train")
    events = EventAccumulator(str(run), size_guidance=_ALL)
    events.Reload()
    losses = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    strips = sorted((run / "pictures").glob("step-*.png"))
    if not losses or not strips:
        raise UserError(f"{run}: holds no history; give the folder of a run of vgan_fast.train")
    picks = np.linspace(0, len(strips) - 1, min(STRIPS, len(strips))).round().astype(int)
    shown = [strips[i] for i in picks]

    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(12, 3.5 + 3.2 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.5, 3.2 * rows])
    for axis, tag in zip(above.subplots(1, len(losses), squeeze=False)[0], losses, strict=True):
        points = events.Scalars(tag)
        axis.plot([p.step for p in points], [p.value for p in points], color="#1f6f8b", lw=1)
        axis.set(title=tag.removeprefix("loss/"), xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    grid = below.subplots(rows, min(2, len(shown)), squeeze=False).ravel()
    for axis in grid:
        axis.set_axis_off()
    for axis, file in zip(grid, shown, strict=False):
        axis.imshow(_read(file))
        axis.set_title(f"step {int(file.stem.removeprefix('step-')):,}", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return iio.imread(drawn.getvalue())[..., :3]


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            check_size(picture.height, picture.width)
            return np.array(picture)
    except Exception as error:  # damaged images raise whatever their format does
        raise UserError(f"{file}: is missing or damaged; remove it to draw the others") from error

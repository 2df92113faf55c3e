"""Clips of a painted world whose camera path is known, with objects that move on their own."""

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

HEIGHT, WIDTH = 240, 320


@dataclass(frozen=True)
class Take:
    frames: np.ndarray  # uint8 (F, HEIGHT, WIDTH, 3), RGB
    truth: np.ndarray  # float64 (F, 3, 3): from pixels of a frame to pixels of the first

    def first(self, count: int) -> "Take":
        return Take(self.frames[:count], self.truth[:count])


def take(
    seed: int,
    frames: int = 32,
    *,
    shift: float = 1.5,
    turn: float = 0.3,
    zoom: float = 0.003,
    covered: float = 0.0,
    contrast: float = 1.0,
    noise: float = 2.0,
    blur: float = 0.0,
) -> Take:
    """Film the world of a seed with a hand that shakes.

    `shift` pixels, `turn` degrees and `zoom` are the standard deviations of the camera's smooth
    steps from frame to frame; objects with a texture of their own cross `covered` of the picture;
    `contrast` scales the background's texture, `noise` is the sensor's in grey levels, `blur` the
    lens's in pixels.
    """
    draw = np.random.default_rng(seed)
    world = _texture(draw, 900, 1200)
    world = 128 + contrast * (world - 128)
    path = _camera_path(draw, frames, shift, turn, zoom)
    objects = _objects(draw, covered, frames)
    pictures = []
    for number, matrix in enumerate(path):
        picture = cv2.warpPerspective(
            world, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        for paint, places in objects:
            x, y = np.round(places[number]).astype(int)
            _paste(picture, paint, x, y)
        if blur:
            picture = cv2.GaussianBlur(picture, (0, 0), blur)
        picture = picture + draw.normal(0, noise, picture.shape)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    truth = np.stack([np.linalg.inv(path[0]) @ matrix for matrix in path])
    return Take(np.stack(pictures), truth)


def residuals(take: Take, estimated: np.ndarray, side: int = 128) -> np.ndarray:
    """Mean distance between where each frame is put and where it belongs, at `side` pixels.

    Over the points of the centre square of the first frame's size; (F,).
    """
    ticks = np.linspace((WIDTH - HEIGHT) / 2, (WIDTH + HEIGHT) / 2, 9)
    points = np.stack(np.meshgrid(ticks, np.linspace(0, HEIGHT, 9)), -1).reshape(-1, 1, 2)
    return np.array(
        [
            np.linalg.norm(
                cv2.perspectiveTransform(points, a) - cv2.perspectiveTransform(points, b), axis=2
            ).mean()
            * side
            / HEIGHT
            for a, b in zip(take.truth, estimated, strict=True)
        ]
    )


def _texture(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blobs of every size, as natural pictures have: float64 (H, W, 3), about 0 to 255."""
    total = np.zeros((height, width, 3))
    for scale in (4, 8, 16, 32, 64, 128):
        coarse = draw.normal(size=(height // scale + 2, width // scale + 2, 3))
        fine = cv2.resize(coarse, (width + scale, height + scale), interpolation=cv2.INTER_CUBIC)
        total += fine[:height, :width] * scale**0.5
    return np.clip(128 + 45 * total / total.std(), 0, 255)


def _camera_path(draw, frames: int, shift: float, turn: float, zoom: float) -> list[np.ndarray]:
    """From pixels of each frame to pixels of the world."""
    steps = draw.normal(size=(frames, 4)) * (shift, shift, np.deg2rad(turn), zoom)
    steps = cv2.GaussianBlur(steps, (1, 5), 0, borderType=cv2.BORDER_REFLECT) * 1.8
    steps[0] = 0
    matrices = []
    for x, y, angle, log_scale in np.cumsum(steps, axis=0):
        scale = np.exp(log_scale)
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        about_centre = np.array(
            [[cosine, -sine, 600 + x], [sine, cosine, 450 + y], [0, 0, 1]]
        ) @ np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1.0]])
        matrices.append(about_centre)
    return matrices


def _objects(draw, covered: float, frames: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Squares with a texture and a path each, which together cover that share of the picture."""
    if not covered:
        return []
    count = 3
    side = round((covered * WIDTH * HEIGHT / count) ** 0.5)
    objects = []
    for k in range(count):
        paint = np.clip(_texture(draw, side, side) + draw.normal(0, 40, 3), 0, 255)
        start = np.array([(k + 0.5) * WIDTH / count, draw.uniform(0.3, 0.7) * HEIGHT]) - side / 2
        velocity = draw.uniform(0.8, 2.5) * _direction(draw)
        along = start + velocity * np.arange(frames)[:, None]
        # Bouncing keeps the whole of it in the picture, and so the share covered.
        room = np.array([max(1, WIDTH - side), max(1, HEIGHT - side)])
        objects.append((paint, room - np.abs(along % (2 * room) - room)))
    return objects


def _direction(draw) -> np.ndarray:
    angle = draw.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _paste(picture: np.ndarray, paint: np.ndarray, x: int, y: int) -> None:
    there = picture[y : y + paint.shape[0], x : x + paint.shape[1]]
    there[:] = paint[: there.shape[0], : there.shape[1]]


def write_take(path: Path, filmed: Take) -> Path:
    """Write a take as Motion JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, options={"qmin": "2", "qmax": "3"})
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = "yuvj420p"
        for frame in filmed.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path

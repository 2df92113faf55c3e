"""The graph decodes strips itself for a GPU; on a CPU the same graph is checked here."""

import cv2
import numpy as np
import pytest
from loader_media import frame, jpeg, undecodable, write_strip

from vgan_fast.loaders.augment import Augmentation
from vgan_fast.loaders.clip_set import Job, StripSet
from vgan_fast.loaders.graph import file_graph
from vgan_fast.loaders.search import Source
from vgan_fast.loaders.strips import measure_strips


def turned(plain: bytes) -> bytes:
    """The JPEG with a tag that asks viewers to turn it."""
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return plain[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + plain[2:]


def test_a_strip_is_known_to_be_whole_before_the_graph_gets_its_bytes(tmp_path):
    undecodable(tmp_path / "0.jpg")
    write_strip(tmp_path / "1.jpg", 8)
    strips, _ = measure_strips(Source(tmp_path / name, "strip") for name in ("0.jpg", "1.jpg"))
    clips = StripSet(strips, encoded=True, frames=4, stride=1, start="fixed", skipped={})
    number, (image, _, _) = clips.read_job(Job(0, lambda _: np.arange(4)))
    assert number == 1
    assert image.tobytes() == (tmp_path / "1.jpg").read_bytes()
    assert list(clips.skipped) == [tmp_path / "0.jpg"]


@pytest.mark.parametrize("sideways", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_encoded_strips_give_the_frames_that_decoded_ones_do(tmp_path, device, sideways):
    """Vertical ones, and with `sideways` one horizontal among them; JPEG and PNG."""
    frames = [frame(number, 32, 32) for number in range(10)]
    for name, strip in (("0.jpg", np.vstack(frames)), ("1.jpg", np.hstack(frames))):
        (tmp_path / name).write_bytes(turned(jpeg(strip)))
    cv2.imwrite(str(tmp_path / "2.png"), np.vstack(frames[:5])[..., ::-1])
    names = ["0.jpg", "1.jpg", "2.png"] if sideways else ["0.jpg", "2.png"]
    strips, skipped = measure_strips(Source(tmp_path / name, "strip") for name in names)
    assert not skipped
    options = dict(frames=4, stride=1, start="fixed", skipped={})
    encoded, decoded = (StripSet(strips, encoded=choice, **options) for choice in (True, False))
    assert encoded.sideways == sideways
    moments = np.array([1, 2, 4, 4])
    jobs = [Job(number, lambda _: moments) for number in range(len(names))]

    def read(_):
        arrays = [encoded.read_job(job)[1] for job in jobs]
        return tuple(map(list, zip(*arrays, strict=True)))

    graph = file_graph(
        read,
        None,
        encoded=True,
        sideways=sideways,
        antialias=False,
        size=32,
        augmentation=Augmentation(),
        device=device,
        batch_size=len(names),
        num_threads=2,
        device_id=0 if device == "gpu" else None,
    )
    graph.build()
    for _ in range(2):  # the second time the strips are known to be whole
        (clips,) = graph.run()
        for job, clip in zip(jobs, clips.as_cpu().as_array(), strict=True):
            _, (expected,) = decoded.read_job(job)
            assert clip.shape == expected.shape == (4, 32, 32, 3)
            assert np.abs(clip.astype(int) - expected).mean() < 1

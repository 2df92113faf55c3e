import imageio.v3 as iio
import numpy as np
import pytest
import torch

from vgan_fast.checkpoint import save_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.networks import build_generator
from vgan_fast.settings import Settings
from vgan_fast.study.clips import Clips

SIZES = {"frames": 4, "size": 16, "width": 4, "latent": 8}


def make_run(folder, **changes):
    settings = Settings(**{**SIZES, "precision": "fp32", "device": "cpu", **changes})
    save_checkpoint(folder, 1, {"generator": build_generator(settings)}, {}, settings)
    return str(folder)


def read(sources, static=(), **changes):
    defaults = {
        "foil": False,
        "count": 3,
        "seed": 0,
        "frames": None,
        "size": None,
        "device": torch.device("cpu"),
    }
    clips = Clips(list(sources.items()), static, **{**defaults, **changes})
    return clips, list(clips)


@pytest.fixture
def videos(tmp_path):
    """Four videos of 12 noisy frames."""
    folder = tmp_path / "videos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "abcd":
        frames = random.integers(0, 256, (12, 20, 24, 3), np.uint8)
        iio.imwrite(folder / f"{name}.gif", frames, duration=40)
    return str(folder)


def test_models_and_real_clips_come_in_the_size_of_the_runs(tmp_path, videos):
    sources = {"two": make_run(tmp_path / "two"), "filmed": videos, "drawn": "synthetic"}
    clips, conditions = read(sources, static=["filmed"], foil=True)
    assert (clips.frames, clips.size) == (4, 16)
    assert [(c.name, c.kind) for c in conditions] == [
        ("two", "model"),
        ("filmed", "real"),
        ("static filmed", "static"),
        ("scramble", "foil"),
        ("drawn", "real"),
    ]
    for condition in conditions:
        assert condition.clips.shape == (3, 4, 16, 16, 3)
        assert condition.clips.dtype == np.uint8
        assert len({clip.tobytes() for clip in condition.clips}) == 3
    _, filmed, static, foil, _ = conditions
    assert np.array_equal(static.clips, filmed.clips[:, :1].repeat(4, axis=1))
    grey = filmed.clips[:, 0].mean(axis=3)
    assert np.allclose(foil.clips[:, 0].mean((1, 2, 3)), grey.mean((1, 2)), atol=0.5)


def test_clips_are_what_the_run_generates(tmp_path):
    from vgan_fast import generate

    run = make_run(tmp_path / "run")
    _, (first, _) = read({"run": run, "other": "synthetic"}, seed=5)
    with pytest.raises(SystemExit):
        generate.main([run, "--out", str(tmp_path / "x.png"), "--count", "3", "--seed", "5"])
    strip = iio.imread(tmp_path / "x.png")
    assert np.array_equal(strip[2:130:8, 2:130:8], first.clips[0, 0])


def test_the_same_seed_gives_the_same_clips_and_places_differ():
    _, (one, other) = read({"a": "synthetic", "b": "synthetic"}, seed=3)
    _, (same, _) = read({"a": "synthetic", "b": "synthetic"}, seed=3)
    assert np.array_equal(one.clips, same.clips)
    assert not np.array_equal(one.clips, other.clips)
    assert one.clips.shape == (3, 32, 64, 64, 3)
    # Clips that no run has trained on.
    held_out = SyntheticClips(frames=32, size=64, batch_size=3, seed=3, split="held-out")
    assert np.array_equal(one.clips, held_out.next_batch().numpy())


def test_files_are_cut_as_the_runs_were_trained(tmp_path, videos):
    """Videos whose frames are numbered by their brightness, at the run's stride."""
    for file in (tmp_path / "videos").iterdir():
        frames = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
        iio.imwrite(file, np.broadcast_to(frames, (12, 20, 20, 3)), duration=40)
    sources = {"a": make_run(tmp_path / "a", data=videos, stride=3), "real": videos}
    _, (_, real) = read(sources)
    assert (np.diff(real.clips[:, :, 8, 8, 0].astype(int)) == 60).all()


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ({"a": {}, "b": {"size": 8}}, {}, "a makes 4 frames of 16x16, b 4 frames of 8x8"),
        ({"a": {}, "b": {"frames": 8}}, {}, "compare runs of the same --frames and --size"),
        ({"a": {"data": "x", "stride": 2}, "b": {}}, {}, "a was trained with --stride 2"),
        ({"a": {}}, {"size": 32}, "--frames and --size: a makes 4 frames of 16x16; leave"),
        ({"a": {}}, {"frames": 5}, "leave both options out"),
        ({"a": {}}, {"foil": True}, "give --catch 0"),
        ({"a": {}}, {"static": ["b"]}, "--static b: is no name in --clips"),
        ({"static a": {}, "a": {}}, {"static": ["a"]}, "static a: the name is taken"),
        ({"scramble": {}}, {}, "--clips scramble: the name is taken"),
        ({"a": {}}, {"absent": True}, "--clips c=no-such-place: no such file or folder"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(
    tmp_path, runs, options, message
):
    sources = {name: make_run(tmp_path / name, **settings) for name, settings in runs.items()}
    if options.pop("absent", False):
        sources["c"] = "no-such-place"
    with pytest.raises(UserError) as error:
        Clips(
            list(sources.items()),
            **{
                "static": [],
                "foil": False,
                "count": 2,
                "seed": 0,
                "frames": None,
                "size": None,
                "device": torch.device("cpu"),
                **options,
            },
        )
    assert message in str(error.value)
    assert "\n" not in str(error.value)

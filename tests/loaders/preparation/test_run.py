"""Sets made of small videos: exact, whole or not at all, and open to training."""

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from camera_media import take, write_take

from vgan_fast.errors import UserError
from vgan_fast.loaders.preparation import apart as apart_module
from vgan_fast.loaders.preparation import assembly
from vgan_fast.loaders.preparation import run as run_module
from vgan_fast.loaders.preparation.apart import Apart, Task
from vgan_fast.loaders.preparation.assembly import Assembly, Packing
from vgan_fast.loaders.preparation.outcome import read_manifest, read_outcome, read_rejected
from vgan_fast.loaders.preparation.run import plan, run
from vgan_fast.loaders.preparation.stabilise import Cutting
from vgan_fast.loaders.preparation.video import Recipe, read_record
from vgan_fast.loaders.search import PARTS, Source, find_sources
from vgan_fast.loaders.shards import open_npy, open_tar
from vgan_fast.loaders.strips import decode_strip

RECIPE = Recipe(Cutting(frames=8, min_frames=4, size=32, skip=1, motion="none"))
PACKING = Packing("tar", 3, validation=0.3, test=0.0, seed=0, clip_shape=(8, 32, 32, 3))
STABILISED = dataclasses.replace(
    RECIPE, cutting=dataclasses.replace(RECIPE.cutting, motion="similarity", size=64)
)
LENGTHS = {"walk/a.avi": 28, "walk/b.avi": 21, "run/a.avi": 14, "run/c d.avi": 9, "run/e.avi": 33}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        write_take(folder / name, take(seed, frames, noise=1))
    (folder / "run/broken.avi").write_bytes(b"RIFF....AVI LIST" + bytes(300))
    shutil.copy(folder / "walk/b.avi", folder / "run/twin.avi")
    return folder


def planned(videos, out, packing=PACKING, recipe=RECIPE):
    return plan([videos], out, recipe, packing)


def files(out: Path) -> dict[str, str]:
    """Hashes of the files of a set, by name."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def made(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    run(planned(videos, out), "local", 2)
    return out


def test_the_manifest_leads_from_every_clip_to_its_frames(videos, made):
    from vgan_fast.loaders.decode import DecodedFrames
    from vgan_fast.loaders.decoders import Settings

    clips = list(read_manifest(made))
    rests = [length - 1 for length in LENGTHS.values()]
    assert len(clips) == sum(rest // 8 + (rest % 8 >= 4) for rest in rests)
    root = Path(json.loads((made / "preparation.json").read_text())["root"])
    decoded = functools.cache(
        lambda name: np.stack(list(DecodedFrames(root / name, "PyAV", Settings(256, None))))
    )
    for clip in clips:
        source = root / clip["source"]
        assert clip["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        with tarfile.open(made / clip["shard"]) as shard:
            names = shard.getnames()
            jpeg = shard.extractfile(f"{clip['key']}.jpg").read()
            told = json.load(shard.extractfile(f"{clip['key']}.json"))
        assert names.index(f"{clip['key']}.jpg") == 2 * clip["position"]
        assert clip["sha256"] == hashlib.sha256(jpeg).hexdigest()
        assert told == clip
        assert clip["label"] == clip["source"].partition("/")[0]
        strips, _ = open_tar(Source(made / clip["shard"], "tar"))
        strip = strips[clip["position"]]
        assert strip.label == clip["label"]
        pixels = decode_strip(strip, strip.read()).astype(int)
        frames = decoded(clip["source"])[clip["start"] :][: clip["frames"]]
        left, top, side = clip["crop"]
        square = frames[:, top : top + side, left : left + side]
        coarse = square.reshape(len(frames), 8, side // 8, 8, side // 8, 3).mean((2, 4))
        ours = pixels.reshape(len(frames), 8, 4, 8, 4, 3).mean((2, 4))
        assert np.abs(coarse - ours).mean() < 3


def test_what_is_in_no_clip_is_named_with_its_reason(made):
    outcome = read_outcome(made)
    twins = {"walk/b.avi", "run/twin.avi"}
    ((left_out, why),) = [item for item in outcome.failed.items() if item[0] in twins]
    assert why == f"the same bytes as another ({(twins - {left_out}).pop()})"
    assert "cannot be decoded" in outcome.failed["run/broken.avi"]
    # 14 frames: the first is skipped, eight are a clip, and five another.
    assert outcome.videos["run/a.avi"].clips == 2
    assert outcome.total.clips == outcome.splits.total() == outcome.labels.total()
    lost = [line for line in read_rejected(made) if "frames" in line]
    assert {line["reason"] for line in lost} == {"the shot is short"}
    assert sum(line["frames"] for line in lost) == outcome.total.lost
    good = {name: length for name, length in LENGTHS.items() if name != left_out}
    assert outcome.total.frames + outcome.total.lost >= sum(good.values()) - len(good)


def test_no_video_is_in_two_splits_and_shards_are_full(made):
    clips = list(read_manifest(made))
    folders = {}
    for clip in clips:
        folders.setdefault(clip["source"], set()).add(clip["shard"].partition("/")[0])
        assert clip["shard"].startswith(PACKING.split(clip["source_sha256"]) + "/")
    assert all(len(splits) == 1 for splits in folders.values())
    assert {split for splits in folders.values() for split in splits} == {"train", "validation"}
    for split in ("train", "validation"):
        shards = sorted((made / split).glob("*.tar"))
        counts = [len(open_tar(Source(shard, "tar"))[0]) for shard in shards]
        assert all(count == 3 for count in counts[:-1])
        assert 0 < counts[-1] <= 3
        assert sum(counts) == sum(clip["shard"].startswith(split) for clip in clips)


def test_a_split_is_drawn_by_a_videos_bytes_alone():
    packing = dataclasses.replace(PACKING, validation=0.2, test=0.1)
    digests = [hashlib.sha256(bytes([k % 256, k // 256])).hexdigest() for k in range(3000)]
    splits = [packing.split(digest) for digest in digests]
    assert splits == [packing.split(digest) for digest in digests]
    for split, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
        assert splits.count(split) / 3000 == pytest.approx(share, abs=0.03)
    # One that is held out stays so when more are.
    wider = dataclasses.replace(packing, validation=0.4)
    pairs = zip(splits, map(wider.split, digests), strict=True)
    assert {after for before, after in pairs if before == "validation"} == {"validation"}


def test_an_index_is_that_of_the_reader(made, caplog):
    for shard in made.rglob("*.tar"):
        assert shard.with_suffix(".idx").exists()
        strips, skipped = open_tar(Source(shard, "tar"))
        assert strips and not skipped
    assert not caplog.records


def test_the_same_for_any_number_of_workers_and_any_place(videos, made, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(videos, moved)
    run(planned(moved, tmp_path / "set"), "local", 1)
    ours, theirs = files(tmp_path / "set"), files(made)
    # That file names the videos' folder.
    assert ours.pop("preparation.json") != theirs.pop("preparation.json")
    assert ours == theirs


def test_a_seed_draws_the_order(videos, tmp_path):
    orders = []
    for seed in range(3):
        whole = planned(videos, tmp_path, recipe=dataclasses.replace(RECIPE, seed=seed))
        orders.append([video.name for video in whole.videos])
        assert sorted(orders[-1]) == sorted(orders[0])
    assert len(set(map(tuple, orders))) == 3


def test_npy_shards_by_class_padded_with_the_last_frame(videos, made, tmp_path):
    packing = dataclasses.replace(PACKING, format="npy", validation=0)
    recipe = dataclasses.replace(RECIPE, format="npy")
    run(planned(videos, tmp_path / "set", packing, recipe), "local", 2)
    found = find_sources(tmp_path / "set", tmp_path / "none")
    assert {source.kind for source in found.sources} == {"npy"}
    assert found.classes == ["run", "walk"]
    clips = {(c["shard"], c["position"]): c for c in read_manifest(tmp_path / "set")}
    seen = 0
    for source in found.sources:
        arrays, skipped = open_npy(source)
        assert not skipped
        for position, array in enumerate(arrays):
            clip = clips[source.path.relative_to(tmp_path / "set").as_posix(), position]
            assert clip["label"] == source.label
            pixels = array.read(0, 8)
            assert clip["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
            assert (pixels[clip["frames"] :] == pixels[clip["frames"] - 1]).all()
            seen += 1
    assert seen == len(clips) == len(list(read_manifest(made)))


def killed_and_resumed(videos, out, workers, kills, seed, scratch, work=RECIPE):
    """Make a set in a process of its own, killed with all its children at so many moments."""
    program = scratch / "program.py"
    program.write_text(
        "import sys; from test_run import *\n"
        "if __name__ == '__main__':\n"
        "    recipe = RECIPE if sys.argv[4] == 'quick' else STABILISED\n"
        "    whole = planned(Path(sys.argv[1]), Path(sys.argv[2]), recipe=recipe)\n"
        "    run(whole, 'local', int(sys.argv[3]))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.getcwd()}"}
    quick = "quick" if work is RECIPE else "slow"
    command = [sys.executable, program, videos, out, str(workers), quick]
    draw, killed, longest = random.Random(seed), 0, 2.0
    while True:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(draw.uniform(0.3, longest) if killed < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        else:
            assert process.returncode == 0
            if killed == kills:
                return
            # It was done too soon: again from the beginning, with kills sooner.
            shutil.rmtree(out)
            longest = 0.3 + 0.8 * (longest - 0.3)


def test_killed_at_random_moments_it_comes_out_the_same(videos, made, tmp_path):
    killed_and_resumed(videos, tmp_path / "set", 2, 5, 0, tmp_path)
    assert files(tmp_path / "set") == files(made)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_twenty_moments_it_comes_out_the_same(videos, tmp_path, workers):
    run(planned(videos, tmp_path / "whole", recipe=STABILISED), "local", 2)
    killed_and_resumed(videos, tmp_path / "set", workers, 20, workers, tmp_path, STABILISED)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def stopping_at(monkeypatch, module, name, count):
    """Let a function fail after that many calls."""
    original, calls = getattr(module, name), []

    def fails(*arguments, **options):
        calls.append(arguments)
        if len(calls) > count:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, fails)
    return calls


@pytest.mark.parametrize(
    ("holder", "step", "count"),
    [
        (assembly, "_write_tar", 0),
        (assembly, "_write_tar", 2),
        (Assembly, "_remove", 0),
        (Assembly, "_remove", 2),
        (Assembly, "write_manifest", 0),
        (run_module, "_remove_parts", 0),
    ],
)
def test_stopped_between_two_steps_it_goes_on(
    videos, made, tmp_path, monkeypatch, holder, step, count
):
    whole = planned(videos, tmp_path / "set")
    with monkeypatch.context() as patched:
        stopping_at(patched, holder, step, count)
        if step == "write_manifest" and count:
            patched.setattr(
                run_module.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(OSError())
            )
        with pytest.raises((KeyboardInterrupt, UserError)):
            run(whole, "local", 2)
    run(whole, "local", 2)
    assert files(tmp_path / "set") == files(made)


def test_a_complete_set_is_left_alone(videos, made, monkeypatch):
    monkeypatch.setattr(run_module.engines, "start", lambda *_: pytest.fail("started"))
    before = files(made)
    run(planned(videos, made), "local", 1)
    assert files(made) == before


def test_another_recipe_or_other_videos_are_refused(videos, made, tmp_path):
    other = planned(videos, made, recipe=dataclasses.replace(RECIPE, quality=80))
    with pytest.raises(UserError, match=r"another recipe .quality: 95, now 80.; choose another"):
        run(other, "local", 1)
    other = planned(videos, made, packing=dataclasses.replace(PACKING, shard_clips=4))
    with pytest.raises(UserError, match=r"another packing .shard_clips: 3, now 4"):
        run(other, "local", 1)
    with pytest.raises(UserError, match=r"other videos .7, now 2"):
        run(planned(videos / "walk", made), "local", 1)


def test_a_folder_with_something_else_is_refused(videos, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else; choose another --out"):
        run(planned(videos, tmp_path), "local", 1)
    assert files(tmp_path).keys() <= {"letter.txt"}


def test_two_runs_do_not_share_a_folder(videos, tmp_path):
    from filelock import FileLock

    whole = planned(videos, tmp_path / "set")
    (tmp_path / "set").mkdir()
    with (
        FileLock(tmp_path / "set/.preparing.lock"),
        pytest.raises(UserError, match="another run is at work there"),
    ):
        run(whole, "local", 1)


def test_strips_and_missing_folders_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="is a strip or a shard already"):
        plan([made / "train"], tmp_path, RECIPE, PACKING)
    with pytest.raises(UserError, match="no such file or folder"):
        plan([tmp_path / "gone"], tmp_path, RECIPE, PACKING)


def test_a_set_that_is_not_finished_is_not_trained_from(videos, made, tmp_path):
    shutil.copytree(made, tmp_path / "set")
    found = find_sources(tmp_path / "set", tmp_path / "none")
    assert {source.path.parent.name for source in found.sources} == {"train"}
    assert find_sources(tmp_path / "set/validation", tmp_path / "none").sources
    (tmp_path / "set" / PARTS).mkdir()
    with pytest.raises(UserError, match="making has not ended"):
        find_sources(tmp_path / "set", tmp_path / "none")
    # Beside videos it is no source at all.
    shutil.copy(videos / "walk/a.avi", tmp_path)
    assert [s.path.name for s in find_sources(tmp_path, tmp_path / "none").sources] == ["a.avi"]


def test_a_shard_that_is_gone_is_missed(videos, tmp_path, monkeypatch):
    whole = planned(videos, tmp_path / "set")
    with monkeypatch.context() as patched:
        stopping_at(patched, Assembly, "write_manifest", 0)
        with pytest.raises(KeyboardInterrupt):
            run(whole, "local", 2)
    (tmp_path / "set/train/000000.tar").unlink()
    with pytest.raises(UserError, match=r"000000\.tar: is gone, and so are its clips"):
        run(whole, "local", 2)


# Stand-ins for the work of one process, called there by name.
def crashes(source, kind, decoder, recipe, part):
    if decoder == "PyAV" and "c d" in source.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    apart_module.prepare_video(source, kind, decoder, recipe, part)


def killed_once(source, kind, decoder, recipe, part):
    marker = part.with_suffix(".killed")
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    assert decoder == "PyAV" or "broken" in source.name
    apart_module.prepare_video(source, kind, decoder, recipe, part)


def always_killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk(*_):
    raise UserError("the disk is full")


def hangs(source, *_):
    time.sleep(600)


def stumbles(source, *arguments):
    if source.name == "b.avi":
        raise ZeroDivisionError("nobody foresaw it")
    apart_module.prepare_video(source, *arguments)


def records(whole, monkeypatch, work, **options):
    monkeypatch.setattr(apart_module, "_within_memory", work)
    for name, value in options.items():
        monkeypatch.setattr(apart_module, name, value)
    tasks = [
        Task(source.path, source.kind, 1, video.part, RECIPE)
        for video, source in zip(whole.videos, whole.sources, strict=True)
    ]
    pool = Apart(2)
    try:
        assert {task.part for task in pool.run(tasks)} == {task.part for task in tasks}
    finally:
        pool.close()
    return {video.name: read_record(video.part) for video in whole.videos}


def test_a_file_that_kills_one_decoder_is_read_by_the_next(videos, tmp_path, monkeypatch):
    found = records(planned(videos, tmp_path), monkeypatch, crashes)
    assert found["run/c d.avi"]["decoder"] == "OpenCV"
    assert found["walk/a.avi"]["decoder"] == "PyAV"


def test_a_process_killed_from_outside_is_no_verdict_on_the_file(videos, tmp_path, monkeypatch):
    found = records(planned(videos, tmp_path), monkeypatch, killed_once)
    assert [name for name, record in found.items() if "failed" in record] == ["run/broken.avi"]
    assert found["walk/a.avi"]["decoder"] == "PyAV"


def test_processes_that_are_always_killed_end_the_run(videos, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="was killed 5 times; is memory short"):
        records(planned(videos / "walk", tmp_path), monkeypatch, always_killed)


def test_a_full_disk_ends_the_run(videos, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the disk is full"):
        records(planned(videos / "walk", tmp_path), monkeypatch, full_disk)


def test_what_nobody_foresaw_costs_its_video(videos, tmp_path, monkeypatch):
    found = records(planned(videos / "walk", tmp_path), monkeypatch, stumbles)
    assert found["b.avi"] == {"failed": "ZeroDivisionError: nobody foresaw it"}
    assert found["a.avi"]["clips"]


def test_a_file_that_is_gone_meanwhile_is_named(videos, tmp_path, monkeypatch):
    shutil.copytree(videos / "walk", tmp_path / "walk")
    whole = planned(tmp_path / "walk", tmp_path / "set")
    (tmp_path / "walk/a.avi").unlink()
    found = records(whole, monkeypatch, apart_module._within_memory)
    assert found["a.avi"] == {"failed": "cannot be read (No such file or directory)"}
    assert found["b.avi"]["clips"]


def test_a_file_that_hangs_is_given_up(videos, tmp_path, monkeypatch):
    found = records(
        planned(videos / "walk", tmp_path), monkeypatch, hangs, time_limit=lambda _: 0.1
    )
    assert found["a.avi"] == {"failed": "PyAV hung; OpenCV hung"}


def test_a_disk_that_fills_up_leaves_nothing_half_written(videos, made, tmp_path, monkeypatch):
    """A real limit on a file's size, in the processes that write."""
    import resource

    whole = planned(videos, tmp_path / "set")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full; free some space"):
            run(whole, "local", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list((tmp_path / "set").rglob("*.tar"))
    run(whole, "local", 1)
    assert files(tmp_path / "set") == files(made)

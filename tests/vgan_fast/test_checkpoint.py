import errno
import os
import pickle
import zipfile

import pytest
import torch

from vgan_fast.checkpoint import (
    HASHES,
    WEIGHTS,
    find_checkpoint,
    list_checkpoints,
    load_state,
    load_weights,
    save_checkpoint,
)
from vgan_fast.checkpoint import SETTINGS as SETTINGS_FILE
from vgan_fast.checkpoint import STATE as STATE_FILE
from vgan_fast.errors import UserError
from vgan_fast.restart import newest_whole
from vgan_fast.settings import Settings

SETTINGS = Settings(keep=2)
STATE = {"random": torch.arange(5, dtype=torch.uint8), "position": 7}


def network(width=4):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))


@pytest.fixture
def saved(tmp_path):
    net = network()
    return save_checkpoint(tmp_path, 10, {"net": net}, STATE, SETTINGS), net


def test_round_trip(saved):
    path, net = saved
    other = network()
    load_weights(path, {"net": other})
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    state = load_state(path)
    assert torch.equal(state["random"], STATE["random"])
    assert (state["position"], state["step"]) == (7, 10)
    assert Settings.load(path / "settings.json") == SETTINGS


def test_the_newest_are_kept(tmp_path):
    for step in (1, 20, 300):
        save_checkpoint(tmp_path, step, {"net": network()}, STATE, SETTINGS)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000300"]
    assert find_checkpoint(tmp_path).name == "step-00000300"
    assert find_checkpoint(tmp_path / "checkpoints" / "step-00000020").name == "step-00000020"


@pytest.mark.parametrize("name", [WEIGHTS, STATE_FILE, SETTINGS_FILE, HASHES])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "removed"])
def test_any_damage_is_refused_by_name_and_the_previous_one_offered(tmp_path, name, damage):
    save_checkpoint(tmp_path, 1, {"net": network()}, STATE, SETTINGS)
    file = save_checkpoint(tmp_path, 2, {"net": network()}, STATE, SETTINGS) / name
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        file.write_bytes({"truncated": content[:-2], "emptied": b"", "flipped": flipped}[damage])
    for found_at in (tmp_path, file.parent):
        with pytest.raises(UserError, match=r"step-00000002.*step-00000001"):
            find_checkpoint(found_at)


def test_another_shape_is_refused(saved):
    with pytest.raises(UserError, match="holds no net of this shape"):
        load_weights(saved[0], {"net": network(width=5)})
    with pytest.raises(UserError, match="holds no other, but net"):
        load_weights(saved[0], {"other": network()})


def test_nothing_to_find(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run(saved, tmp_path):
    """Whatever its hashes say: the state is read without the power to call anything."""
    path, _ = saved
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    state = path / "state.pt"
    with zipfile.ZipFile(state) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(state, "w") as archive:
        for name, content in members.items():
            payload = pickle.dumps(Attack()) if name.endswith("data.pkl") else content
            archive.writestr(name, payload)
    with pytest.raises(UserError, match="is not the state of a run"):
        load_state(path)
    assert not marker.exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    first = save_checkpoint(tmp_path, 1, {"net": network()}, STATE, SETTINGS)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"step-00000002: the disk is full.*--out"):
        save_checkpoint(tmp_path, 2, {"net": network()}, STATE, SETTINGS)
    assert list((tmp_path / "checkpoints").iterdir()) == [first]
    assert find_checkpoint(tmp_path) == first


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000001-abc"
    (left / "step-00000001").mkdir(parents=True)
    save_checkpoint(tmp_path, 2, {"net": network()}, STATE, SETTINGS)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_pickle_before_the_state_is_refused(saved):
    path, _ = saved
    state = path / STATE_FILE
    state.write_bytes(pickle.dumps(bytearray(1000)) + state.read_bytes())
    with pytest.raises(UserError, match="before its first part"):
        load_state(path)


def test_values_that_stand_in_many_places_are_looked_at_once(saved):
    path, _ = saved
    value = [1]
    for _ in range(60):
        value = [value, value]
    torch.save({"step": 1, "shared": value}, path / STATE_FILE)
    assert load_state(path)["step"] == 1


def test_what_cannot_be_read_is_not_called_damaged(saved, monkeypatch):
    path, _ = saved

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("vgan_fast.checkpoint.sha256_of", failing)
    with pytest.raises(UserError, match=r"cannot be read \(input/output error\); try again"):
        find_checkpoint(path)
    with pytest.raises(UserError, match="cannot be read"):
        newest_whole(path.parent.parent)
    assert path.exists()


def test_after_a_restart_a_broken_checkpoint_is_set_aside(tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"net": network()}, STATE, SETTINGS)
    broken = tmp_path / "checkpoints" / "step-00000002"
    (broken / WEIGHTS).write_bytes(b"half")
    assert newest_whole(tmp_path).name == "step-00000001"
    (aside,) = broken.parent.glob("step-00000002-broken-*")
    assert (aside / WEIGHTS).read_bytes() == b"half"
    assert f"{broken}: is missing, truncated or corrupt; set aside" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08" + bytes(20)], ids=repr)
def test_files_that_somebody_made_up_are_refused_in_one_line(saved, content):
    path, _ = saved
    (path / "state.pt").write_bytes(content)
    (path / "weights.safetensors").write_bytes(content)
    for read in (load_state, lambda p: load_weights(p, {"net": network()})):
        with pytest.raises(UserError, match="step-00000010"):
            read(path)

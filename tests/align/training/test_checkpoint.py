"""Checkpoints: what is put in comes out, damage is noticed, a half-written one is never taken for one."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from align.errors import UserError
from align.training import checkpoint
from align.training.checkpoint import Checkpoints, Damaged

STATES = {
    "optimiser": {"state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)}}, "param_groups": [{"lr": 1e-4}]},
    "batches": {"step": 7, "note": None, "betas": (0.9, 0.999), "flags": [True, False]},
    "shared": {"a": (both := torch.arange(6.0)), "b": both.view(2, 3).T},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_states_come_back_as_they_were(tmp_path):
    path = Checkpoints(tmp_path).save(12, STATES, {"threads": 2})
    states, meta = checkpoint.load(path)
    assert same(states, STATES)
    assert meta == {"step": 12, "threads": 2}
    assert not list(path.glob("*.pt")) + list(path.glob("*.bin")) + list(path.glob("*.pkl"))


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="state/x is a set"):
        Checkpoints(tmp_path).save(1, {"a": {"x": {1, 2}}}, {})
    assert Checkpoints(tmp_path).newest() is None


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 30):
        checkpoints.save(step, STATES, {})
    assert [path.name for path in checkpoints.steps()] == ["step-000002", "step-000030"]


def damage(path, how):
    file = path / "optimiser.safetensors"
    if how == "a flipped byte":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif how == "a cut file":
        file.write_bytes(file.read_bytes()[:-3])
    elif how == "a missing file":
        (path / "state.json").unlink()
    elif how == "a missing manifest":
        (path / checkpoint.MANIFEST).unlink()
    elif how == "an unreadable manifest":
        (path / checkpoint.MANIFEST).write_text("{")


@pytest.mark.parametrize(
    "how", ["a flipped byte", "a cut file", "a missing file", "a missing manifest", "an unreadable manifest"]
)
def test_a_damaged_one_is_noticed_and_the_one_before_used(tmp_path, how):
    said = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    good, bad = checkpoints.save(1, STATES, {}), checkpoints.save(2, STATES, {})
    assert checkpoints.newest() == bad
    damage(bad, how)
    assert checkpoints.newest() == good
    assert len(said) == 1 and str(bad) in said[0] and "damaged" in said[0]
    with pytest.raises(Damaged):
        checkpoint.load(bad)
    checkpoints.save(2, STATES, {})  # written again over the damaged one
    assert checkpoints.newest() == bad


def test_an_interrupted_save_leaves_the_previous_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    good = checkpoints.save(1, STATES, {})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, STATES, {})
    monkeypatch.undo()
    assert checkpoints.newest() == good
    assert checkpoints.save(2, STATES, {}).is_dir()  # what the crash left is no obstacle
    assert not list(tmp_path.glob(".*"))


def test_a_copy_under_another_name_is_no_checkpoint_and_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = checkpoints.save(2, STATES, {})
    for name in ("step-best", "step-000002-mine", "step-000009", "step-2", "step-000002 (copy)", "Step-000003"):
        shutil.copytree(first, tmp_path / name)
    (tmp_path / "step-000008").write_text("a file")
    assert checkpoints.newest() == first and checkpoints.steps() == [first], "step-000009 says itself that it is 2"
    checkpoints.save(3, STATES, {})
    left = {path.name for path in tmp_path.iterdir()}
    assert "step-000002" not in left and {"step-best", "step-000002-mine", "step-000009"} <= left


def test_a_million_updates_are_in_order(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        checkpoints.save(step, STATES, {})
    assert [path.name for path in checkpoints.steps()] == ["step-999999", "step-1000000"]
    assert checkpoints.newest().name == "step-1000000"


def test_a_run_that_goes_back_gives_up_what_came_after_and_keeps_where_it_went_back_to(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, keep=1, say=said.append)
    checkpoints.keep = 9
    for step in (2, 4, 6):
        checkpoints.save(step, STATES, {})
    checkpoints.keep = 1
    checkpoints.go_back(tmp_path / "step-000002")
    assert [path.name for path in checkpoints.steps()] == ["step-000002"] and "given up" in said[0]
    assert (tmp_path / "abandoned-step-000006").is_dir() and checkpoints.newest().name == "step-000002"
    checkpoints.save(3, STATES, {"base": checkpoints.base})
    checkpoints.save(5, STATES, {"base": checkpoints.base})
    assert [path.name for path in checkpoints.steps()] == ["step-000002", "step-000005"], "the same command finds it"
    later = Checkpoints(tmp_path, keep=1, say=said.append)
    later.go_back(tmp_path / "step-000005")
    assert later.base is None and len(said) == 1, "nothing is given up where nothing came after"


def test_what_was_passed_over_as_damaged_is_no_future(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATES, {})
    damage(checkpoints.save(2, STATES, {}), "a cut file")
    checkpoints.go_back(checkpoints.newest())
    assert checkpoints.base is None and [path.name for path in checkpoints.steps()] == ["step-000001"]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATES, {})
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"the checkpoint of update 2 cannot be written \(No space left\). Make room"):
        checkpoints.save(2, STATES, {})
    assert checkpoints.newest().name == "step-000001"


def test_to_start_over_removes_the_runs_own_and_nothing_else(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    for step in (1, 2):
        checkpoints.save(step, STATES, {})
    checkpoints.go_back(tmp_path / "checkpoints" / "step-000001")
    shutil.copytree(tmp_path / "checkpoints" / "step-000001", tmp_path / "checkpoints" / "step-best")
    checkpoints.clear()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-best"]
    shutil.rmtree(tmp_path / "checkpoints" / "step-best")
    checkpoints.clear()
    assert not (tmp_path / "checkpoints").exists()
    checkpoints.clear()


def test_where_folders_cannot_be_opened_they_are_not(tmp_path, monkeypatch):
    """Windows opens no folder, and a file only for writing when it is to be flushed."""
    opened = []

    def refuses(path, flags):
        assert not path.is_dir(), "PermissionError on Windows"
        opened.append((path.name, flags))
        return os.open(path, flags)

    (tmp_path / "file").write_text("x")
    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": refuses})
    monkeypatch.setattr(checkpoint, "os", windows)
    for path in (tmp_path / "file", tmp_path):
        checkpoint._flush(path)
    assert opened == [("file", os.O_RDWR)]

"""Checkpoints: what is put in comes out, damage is noticed, a half-written one is never taken for one."""

import pytest
import torch

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

"""The trainer: how a batch is cut, where a run was stopped and what failed in between leave no trace in its numbers."""

import os
import signal

import pytest
import torch
from align_toys import Regression, StopAfter, fit, toy_policy, weights
from pydantic import ValidationError
from safetensors.torch import load_file

from align.errors import UserError
from align.hooks._base import Hook
from align.policy.adapter_file import FILE_NAME
from align.training.checkpoint import Checkpoints
from align.training.trainer import TrainConfig


def test_training_lowers_the_loss(tmp_path):
    _, state, records = fit(tmp_path, num_updates=100)
    assert state.step == 100 and records[-1]["loss"] < 0.7 * records[0]["loss"]


@pytest.mark.parametrize("extras", [{}, {"ema": 0.5}, {"adapter": {"dropout": 0.3}}], ids=str)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path, extras):
    whole, unbroken, expected = fit(tmp_path / "whole", **extras)
    first, state, before = fit(tmp_path / "broken", hooks=[StopAfter(3)], **extras)
    assert state.step == 3 and state.stop == "enough"
    checkpoint = Checkpoints(tmp_path / "broken/checkpoints").newest()
    second, resumed, after = fit(tmp_path / "broken", resume=checkpoint, **extras)
    assert resumed.step == 6 and before + after == expected
    assert not torch.equal(weights(first), weights(whole))
    assert torch.equal(weights(second), weights(whole))
    assert second.calls == whole.calls
    with unbroken.average(), resumed.average():
        assert torch.equal(weights(second), weights(whole))


def test_a_damaged_checkpoint_costs_its_updates_and_nothing_else(tmp_path):
    whole, _, expected = fit(tmp_path / "whole")
    fit(tmp_path / "broken", hooks=[StopAfter(4)])
    said = []
    checkpoints = Checkpoints(tmp_path / "broken/checkpoints", say=said.append)
    file = checkpoints.steps()[-1] / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    policy, _, after = fit(tmp_path / "broken", resume=checkpoints.newest())
    assert after == expected[2:] and "step-000004" in said[0]
    assert torch.equal(weights(policy), weights(whole))


@pytest.mark.parametrize("drop", [None, 3], ids=["all rows", "rows dropped"])
def test_accumulation_does_not_change_the_run(tmp_path, drop):
    """2 x 4 rows, 3 + 3 + 2 rows and 1 x 8 rows, in float64: only the order of sums differs."""
    runs = [
        fit(tmp_path / str(size), micro_batch_size=size, dtype=torch.float64, objective=Regression(drop=drop))
        for size in (None, 4, 3)
    ]
    for policy, _, records in runs[1:]:
        torch.testing.assert_close(weights(policy), weights(runs[0][0]), rtol=1e-6, atol=1e-9)
        for mine, whole in zip(records, runs[0][2], strict=True):
            assert mine.keys() == whole.keys()
            assert mine["loss"] == pytest.approx(whole["loss"], rel=1e-6)
            assert mine["error"] == pytest.approx(whole["error"], rel=1e-6)
            assert mine["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-6)
    assert runs[1][2][0]["rows"] == 4  # a metric without rows is the mean over rows of what each saw


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path):
    quiet = {"lr": 1e-2, "schedule": "constant"}
    plain, *_ = fit(tmp_path / "a", num_updates=1, optim=quiet)
    policy, _, records = fit(tmp_path / "b", num_updates=2, optim=quiet, objective=Regression(nan_at={1}))
    assert [r["outcome"] for r in records] == ["applied", "not finite"]
    assert torch.equal(weights(policy), weights(plain))


def test_a_run_that_diverged_ends_with_a_reason(tmp_path):
    with pytest.raises(UserError, match=r"not finite in 3 updates in a row, up to update 5.*Lower optim.lr"):
        fit(tmp_path, num_updates=9, max_failures=3, objective=Regression(nan_at={0, 2, 3, 4}))


def test_rows_that_are_all_dropped_move_nothing(tmp_path):
    policy, _, records = fit(tmp_path, num_updates=3, hooks=[StopAfter(2)], objective=Regression(drop=1))
    assert [record["outcome"] for record in records] == ["empty"] * 2
    assert torch.equal(weights(policy), weights(toy_policy(rank=2)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_within_its_update_and_it_can_be_taken_up(tmp_path, number):
    class Kill(Hook):
        def after_update(self, state):
            if state.step == 3:
                os.kill(os.getpid(), number)

    whole, _, expected = fit(tmp_path / "whole")
    handler = signal.getsignal(number)
    _, state, before = fit(tmp_path / "broken", hooks=[Kill()])
    assert (state.step, state.interrupted) == (3, number.name)
    assert signal.getsignal(number) == handler
    policy, state, after = fit(tmp_path / "broken", resume=Checkpoints(tmp_path / "broken/checkpoints").newest())
    assert state.interrupted is None and before + after == expected
    assert torch.equal(weights(policy), weights(whole))


def test_the_gradient_is_clipped_to_the_norm_asked_for(tmp_path):
    """One step of plain AdamW does not see a gradient's size: compare the second moments it keeps."""
    norms = {}
    for limit in (None, 1e-3):
        _, _, records = fit(tmp_path / str(limit), num_updates=1, max_grad_norm=limit)
        path = Checkpoints(tmp_path / str(limit) / "checkpoints").newest()
        from align.training import checkpoint

        states, _ = checkpoint.load(path)
        squares = sum(s["exp_avg_sq"].sum() for s in states["optimiser"]["state"].values()) / (1 - 0.999)
        norms[limit] = (records[0]["grad_norm"], float(squares) ** 0.5)
    assert norms[None][0] == norms[1e-3][0] > 1e-2  # what is reported is the norm before clipping
    assert norms[None][1] == pytest.approx(norms[None][0], rel=1e-4)
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-2)


def test_resuming_takes_up_the_number_of_threads(tmp_path):
    fit(tmp_path, hooks=[StopAfter(2)])
    said, threads = [], torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        fit(tmp_path, resume=Checkpoints(tmp_path / "checkpoints").newest(), say=said.append)
        assert torch.get_num_threads() == threads and f"going on with {threads} threads" in said[0]
    finally:
        torch.set_num_threads(threads)


def test_a_micro_batch_is_no_larger_than_the_batch():
    with pytest.raises(ValidationError, match="micro_batch_size=9 exceeds batch_size=8"):
        TrainConfig(batch_size=8, micro_batch_size=9)


@pytest.mark.parametrize("extras", [{}, {"ema": 0.5}], ids=str)
def test_adapters_are_exported_on_the_way_and_those_of_a_future_that_is_given_up_set_aside(tmp_path, extras):
    options = {"export_every": 2, "keep_checkpoints": 9, "checkpoint_every": 2, **extras}
    fit(tmp_path, **options)
    exports = tmp_path / "adapters"
    assert sorted(path.name for path in exports.iterdir()) == ["step-000002", "step-000004", "step-000006"]
    at_four, _, _ = fit(tmp_path / "four", hooks=[StopAfter(4)], **options)
    assert (exports / "step-000004" / FILE_NAME).read_bytes() == (
        tmp_path / "four/adapters/step-000004" / FILE_NAME
    ).read_bytes()
    exported = load_file(exports / "step-000004" / FILE_NAME)
    now = at_four.adapter.state_dict()
    same = all(torch.equal(a, b) for a, b in zip(exported.values(), (now[k] for k in sorted(now)), strict=True))
    assert same is not bool(extras)  # a run that keeps a moving average exports that
    fit(tmp_path, resume=tmp_path / "checkpoints/step-000002", **{**options, "num_updates": 5})
    assert sorted(path.name for path in exports.iterdir()) == [
        "abandoned-step-000004", "abandoned-step-000006", "step-000002", "step-000004"
    ]  # fmt: skip

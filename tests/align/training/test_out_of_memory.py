"""Memory that runs out in an update: told, or tried again in halves with the same result."""

import pytest
import torch
from align_toys import Regression, fit, weights

from align.errors import UserError
from align.training.growth import Growth
from align.training.memory import exhausted
from align.training.trainer import TrainConfig


class Hungry(Regression):
    """Fits `most` rows, after having gathered them; `when`: from this update on."""

    def __init__(self, most, *, when=0, error=torch.OutOfMemoryError, **settings):
        super().__init__(**settings)
        self.most, self.when, self.error, self.seen, self.totals = most, when, error, [], []

    def before_update(self, policy, micro_batches, gather):
        self.seen.append(sum(map(len, micro_batches)))

    def __call__(self, policy, batch, context=None):
        self.seen.append(len(batch))
        if len(batch) > self.most and batch.step >= self.when:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().__call__(policy, batch)

    def after_update(self, gather):
        self.totals.append(sum(self.seen))
        self.seen.clear()


def test_halves_give_the_same_run(tmp_path):
    said = []
    whole, _, records = fit(tmp_path / "whole", objective=Regression(), num_updates=4)
    hungry = Hungry(2, when=1)
    cut, _, found = fit(tmp_path / "cut", objective=hungry, num_updates=4, auto_micro_batch=True, say=said.append)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-5, atol=1e-7)
    assert said == [
        "out of memory in update 2 with 8 rows at once: going on with 4",
        "out of memory in update 2 with 4 rows at once: going on with 2",
    ]
    assert hungry.totals == [16] * 4, "what a failed attempt had gathered is counted once"
    assert [record["error"] for record in found] == pytest.approx([record["error"] for record in records], rel=1e-5)
    exact, _, _ = fit(tmp_path / "exact", num_updates=4, micro_batch_size=2)
    again, _, _ = fit(tmp_path / "again", objective=Hungry(2), num_updates=4, auto_micro_batch=True, say=said.append)
    assert torch.equal(weights(again), weights(exact)), "to the bit where the pieces are the same"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_without_it_the_run_ends_with_what_to_set(tmp_path, error):
    with pytest.raises(
        UserError, match=r"out of memory in update 3 with 8 rows.*Set train.micro_batch_size=4"
    ) as found:
        fit(tmp_path, objective=Hungry(4, when=2, error=error))
    assert "auto_micro_batch" in str(found.value) and (tmp_path / "checkpoints" / "step-000002").is_dir()


def test_what_cannot_be_cut_is_said(tmp_path):
    with pytest.raises(UserError, match=r"with 1 row at.*nothing left to cut.*checkpoint_blocks"):
        fit(tmp_path, objective=Hungry(0), auto_micro_batch=True)


def test_other_errors_and_the_optimisers_step_are_not_tried_again(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="shapes"):
        fit(tmp_path / "a", objective=Hungry(2, error=lambda text: RuntimeError("shapes")), auto_micro_batch=True)
    steps = []

    def step(self, *_):
        steps.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="out of memory in update 1"):
        fit(tmp_path / "b", auto_micro_batch=True)
    assert steps == [1]


def test_what_means_that_memory_ran_out():
    assert exhausted(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert exhausted(RuntimeError("MPS backend out of memory")) and not exhausted(RuntimeError("size mismatch"))


def test_dropout_has_masks_of_its_own_for_every_cut():
    from align.policy.lora import AdapterConfig

    ((key, _),) = TrainConfig(auto_micro_batch=True).conflicts({"adapter": AdapterConfig(dropout=0.1)})
    assert key == ".auto_micro_batch" and not list(TrainConfig(auto_micro_batch=True).conflicts({}))


def test_memory_that_grows_is_said_once_and_only_if_it_will_not_suffice():
    def told(per_update, free, grows_until=10**9):
        said, step = [], 0
        growth = Growth(400, said.append, used=lambda: min(step, grows_until) * per_update, free=lambda: free)
        for step in range(1, 401):
            growth.watch(step)
        return said

    mib = 2**20
    (line,) = told(10 * mib, 1000 * mib)
    assert "10 MiB an update and will run out near update 180" in line
    assert not told(10 * mib, 10_000 * mib), "it suffices to the end"
    assert not told(10 * mib, 100 * mib, grows_until=50), "a cache that fills"
    assert not told(mib, 100 * mib), "less than allocators move by"

"""One update: fp16's scaler, the moving average, and what an objective is given before it."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from align_toys import Regression, toy_policy, weights
from torch._subclasses.fake_tensor import FakeTensorMode

from align.data.prompts import PromptBatch
from align.objectives._base import Loss
from align.policy.noise import Noise, Repeated
from align.training.ema import EMA
from align.training.memory import Shortage
from align.training.update import _add, update

BATCH = PromptBatch(("a",) * 6, tuple(range(6)), 0)


def step(objective, *, scaler=None, optimiser=None, policy=None):
    policy = policy or toy_policy(0, rank=2)
    optimiser = optimiser or torch.optim.SGD(policy.adapter.parameters(), lr=0.1)
    accelerator = Accelerator(cpu=True)
    pieces = [BATCH[:4], BATCH[4:]]
    done = update(objective, policy, policy.adapter, optimiser, pieces, accelerator, seed=(0, 0), scaler=scaler)
    return done, policy


def test_the_step_is_along_the_gradient_of_the_weighted_mean():
    """Plain descent at rate 0.1: the parameters move by -0.1 times the gradient of sum(w l) / sum(w), rows dropped."""
    by_hand = toy_policy(0, rank=2)
    loss = Regression(drop=3)(by_hand, BATCH)
    assert loss.weight.tolist() == [0, 1, 1, 0, 1, 1]
    gradient = torch.autograd.grad(loss.per_sample[loss.weight > 0].mean(), by_hand.adapter.parameters())
    done, policy = step(Regression(drop=3))
    moved = weights(policy) - weights(by_hand)
    torch.testing.assert_close(moved, -0.1 * torch.cat([g.flatten() for g in gradient]), rtol=1e-4, atol=1e-7)
    assert done.metrics["loss"] == pytest.approx(float(loss.per_sample[loss.weight > 0].mean().detach()))
    assert done.metrics["error"] == pytest.approx(float(loss.per_sample.mean().detach()))  # metrics are over all rows


class HandedOver(Regression):
    """The rows from number `since` on are the base's: their loss has no graph where they are alone."""

    def __init__(self, since):
        super().__init__()
        self.since = since

    def __call__(self, policy, batch, context=None):
        loss = super().__call__(policy, batch)
        own = torch.tensor([i < self.since for i in batch.indices])
        rows = torch.where(own, loss.per_sample, loss.per_sample.detach())
        return loss._replace(per_sample=rows if own.any() else rows.detach())


def test_a_micro_batch_that_no_trained_step_reaches_adds_nothing():
    """As its rows do beside others': the update is the same, however it is cut."""
    by_hand = toy_policy(0, rank=2)
    loss = Regression()(by_hand, BATCH)
    gradient = torch.autograd.grad(loss.per_sample[:4].sum() / 6, by_hand.adapter.parameters())
    for since, scaler in ((4, None), (4, torch.amp.GradScaler("cpu", init_scale=1024.0))):
        done, policy = step(HandedOver(since), scaler=scaler)
        moved = weights(policy) - weights(by_hand)
        torch.testing.assert_close(moved, -0.1 * torch.cat([g.flatten() for g in gradient]), rtol=1e-4, atol=1e-7)
        assert done.outcome == "applied" and done.metrics["loss"] == pytest.approx(
            float(loss.per_sample.detach().mean())
        )


def test_an_update_that_no_trained_step_reaches_leaves_the_optimiser_alone():
    """Neither decay nor moments move the weights, and fp16's scale stays."""
    policy = toy_policy(0, rank=2)
    optimiser = torch.optim.AdamW(policy.adapter.parameters(), lr=0.1, weight_decay=0.5)
    step(Regression(), policy=policy, optimiser=optimiser)
    before = weights(policy), {k: v["exp_avg"].clone() for k, v in optimiser.state.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    done, _ = step(HandedOver(0), policy=policy, optimiser=optimiser, scaler=scaler)
    assert done.outcome == "unreached" and set(done.metrics) == {"loss", "error", "rows"}
    assert torch.equal(weights(policy), before[0]) and scaler.get_scale() == 1024.0
    assert all(torch.equal(optimiser.state[k]["exp_avg"], v) for k, v in before[1].items())
    assert step(Regression(), policy=policy, optimiser=optimiser, scaler=scaler)[0].outcome == "applied"


def test_a_scaled_update_equals_the_plain_one():
    plain, expected = step(Regression())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, policy = step(Regression(), scaler=scaler)
    assert scaled.metrics == plain.metrics and scaled.outcome == "applied"
    torch.testing.assert_close(weights(policy), weights(expected))


def test_an_overflow_lowers_the_scale_and_is_no_failure():
    fresh = weights(toy_policy(0, rank=2))
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    done, policy = step(Regression(), scaler=scaler)
    assert done.outcome == "overflow" and scaler.get_scale() == pytest.approx(1.5e38)
    assert torch.equal(weights(policy), fresh)
    done, _ = step(Regression(nan_at={0}), scaler=scaler)
    assert done.outcome == "not finite"


def test_an_objective_may_look_at_the_whole_update_first():
    class Baseline(Regression):
        def before_update(self, policy, micro_batches, gather):
            return gather(torch.tensor([i for batch in micro_batches for i in batch.indices]))

        def __call__(self, policy, batch, context=None):
            seen.append(context.tolist())
            return super().__call__(policy, batch)

    seen = []
    step(Baseline())
    assert seen == [list(range(6))] * 2


def test_dropout_is_on_in_the_update_and_off_after_it():
    modes = []

    class Watch(Regression):
        def __call__(self, policy, batch, context=None):
            modes.append(policy.adapter.layers[0].lora_dropout["default"].training)
            return super().__call__(policy, batch)

    _, policy = step(Watch(), policy=toy_policy(0, rank=2, dropout=0.5))
    assert modes == [True, True] and not policy.adapter.layers[0].lora_dropout["default"].training


def test_calls_are_counted_in_rows_and_forward_equivalents():
    class Checkpointed(Regression):
        def __call__(self, policy, batch, context=None):
            with torch.no_grad():
                policy.role("reference")(torch.randn(len(batch), 4), torch.tensor(0.5), None)
            call = super().__call__
            out = torch.utils.checkpoint.checkpoint(lambda: call(policy, batch).per_sample, use_reentrant=False)
            return call(policy, batch)._replace(per_sample=out)

    _, policy = step(Checkpointed())
    # 6 rows each: the reference; a checkpointed call; a plain call whose graph is dropped
    assert (policy.calls.forward, policy.calls.recompute, policy.calls.backward) == (18, 6, 12)
    assert policy.calls.forward_equivalents == 18 + 6 + 24


@pytest.mark.parametrize("decay", [0.05, 0.15, 0.999])
def test_the_average_follows_its_recursion(decay):
    """d = 0.1 and 2/11 at the first two updates, where the decay is not less."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    ema = EMA([weight], decay)
    for value in (2.0, 4.0):
        weight.data.fill_(value)
        ema.update()
    first, second = min(decay, 0.1), min(decay, 2 / 11)
    with ema.applied():
        expected = second * (first * 1 + (1 - first) * 2) + (1 - second) * 4
        assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert weight.item() == 4


def test_a_metric_may_be_on_another_device_than_the_losses():
    """On a GPU, the number of a step that was read is of the CPU; their sums are stacked."""
    with FakeTensorMode():
        losses = torch.zeros(2, device="cuda")
        sums = {}
        _add(sums, Loss(losses, torch.ones_like(losses), {"step_read": torch.tensor(3.0), "error": losses}))
    assert {total.device.type for total, _ in sums.values()} == {"cuda"} and len(sums) == 5


def test_memory_that_ran_out_on_another_process_ends_this_ones_update_too():
    policy, asked = toy_policy(0, rank=2), []
    fresh, optimiser = weights(policy), torch.optim.SGD(policy.adapter.parameters(), lr=0.1)
    with pytest.raises(Shortage, match="on another process"):
        update(
            Regression(),
            policy,
            policy.adapter,
            optimiser,
            [BATCH],
            Accelerator(cpu=True),
            seed=(0, 0),
            agree=lambda short: asked.append(short) or True,
        )
    assert asked == [False] and torch.equal(weights(policy), fresh)
    assert all(parameter.grad is None for parameter in policy.adapter.parameters())


def test_a_process_without_rows_takes_part_in_a_scaled_update(monkeypatch):
    policy = toy_policy(0, rank=2)
    for parameter in policy.adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    there = {"loss": (1.0, 2), "weight": (2.0, 2), "reached": (2.0, 2)}
    monkeypatch.setattr("align.training.update.gather_object", lambda mine: [*mine, there])
    two = SimpleNamespace(num_processes=2, process_index=1, device=torch.device("cpu"), reduce=lambda t, reduction: t)
    optimiser = torch.optim.SGD(policy.adapter.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    done = update(Regression(), policy, policy.adapter, optimiser, [], two, seed=(0, 0), scaler=scaler)
    assert done.outcome == "applied" and done.metrics["loss"] == 0.5
    there["reached"] = (0.0, 2)
    done = update(Regression(), policy, policy.adapter, optimiser, [], two, seed=(0, 0))
    assert done.outcome == "unreached"  # by what all processes say, the same on each


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("overflowed", [False, True])
def test_the_scale_of_rows_that_are_problems_of_their_own_is_one_on_all_processes(rows, overflowed, monkeypatch):
    """As on one process, where a row that overflows holds the others back for an update."""
    noise = Noise(torch.ones(2, 1, 2, 2))
    there = {"loss": (1.0, 2), "weight": (2.0, 2), "reached": (2.0, 2)}
    monkeypatch.setattr("align.training.update.gather_object", lambda mine: [*mine, there])

    def reduce(flag, reduction):
        return flag + overflowed

    two = SimpleNamespace(num_processes=2, process_index=1, device=torch.device("cpu"), reduce=reduce)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(noise.parameters(), lr=0.1)

    def objective(policy, batch, context):
        return Loss(batch.x_T.sum((1, 2, 3)), torch.ones(len(batch)), {})

    batches = [next(iter(Repeated(noise, ["a"] * rows, range(rows))))] * bool(rows)
    update(objective, toy_policy(0, rank=2), noise, optimiser, batches, two, seed=(0, 0), scaler=scaler)
    assert scaler.get_scale() == (512.0 if overflowed else 1024.0)
    wanted = 0.9 if rows and not overflowed else 1.0
    torch.testing.assert_close(noise.x_T.detach(), torch.full((2, 1, 2, 2), wanted))

"""A run that learns nothing does not end as a success, and its end says why; an average that has begun to count."""

import pytest
import torch
from align_toys import Regression, fit, weights
from torch import nn

from align.errors import UserError
from align.training.ema import EMA
from align.training.failures import CULPRIT, EMPTY, OVERFLOWS, UNREACHED, Failures
from align.training.optim import OptimConfig
from align.training.trainer import TrainConfig
from align.training.update import Update
from rewards import Composite
from rewards.python import Python, PythonConfig


def test_a_run_whose_rows_were_all_dropped_is_an_error(tmp_path):
    with pytest.raises(UserError, match="all 3 updates trained on nothing: every row was dropped"):
        fit(tmp_path, num_updates=3, objective=Regression(drop=1))
    with pytest.raises(UserError, match=f"{EMPTY} updates in a row, up to update {EMPTY}, trained on nothing"):
        fit(tmp_path / "long", num_updates=99, objective=Regression(drop=1))


def test_the_data_say_why(tmp_path):
    failures = Failures(5)
    with pytest.raises(UserError, match="Lower the gap"):
        for step in range(1, EMPTY + 1):
            failures.watch(Update({"loss": 0.0}, "empty"), step, scale=None, why_empty="Lower the gap.")


class Flat(Regression):
    """Has a loss that nothing changes."""

    def __call__(self, policy, batch, context=None):
        loss = super().__call__(policy, batch)
        return loss._replace(per_sample=loss.per_sample * 0)


def test_a_run_without_a_gradient_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing was learnt: no update of 2 had a finite gradient above 0"):
        fit(tmp_path, num_updates=2, objective=Flat())


class Base(Regression):
    """Has a loss that is the base's, but in the updates `own`."""

    def __init__(self, own=(), *, same_steps=False):
        super().__init__()
        self.own, self.same_steps, self.asked = own, same_steps, 0

    def __call__(self, policy, batch, context=None):
        self.asked += 1
        loss = super().__call__(policy, batch)
        return loss if batch.step in self.own else loss._replace(per_sample=loss.per_sample.detach())


@pytest.mark.parametrize(("same_steps", "updates"), [(True, 1), (False, UNREACHED)])
def test_a_loss_that_no_trained_step_reaches_is_said_in_one_line(tmp_path, same_steps, updates):
    """Such as roles that give the steps with gradient to the base: not autograd's own words; at once where no draw
    decides."""
    objective = Base(same_steps=same_steps)
    with pytest.raises(UserError, match=r"^train: the loss depends on nothing that is trained.*sampling\.last_k"):
        fit(tmp_path, num_updates=99, objective=objective)
    assert objective.asked == updates
    with pytest.raises(UserError, match="depends on nothing that is trained"):
        fit(tmp_path / "short", num_updates=2, objective=Base())


def test_draws_that_miss_the_policys_steps_end_no_run(tmp_path):
    """Late in the first patience, and for longer than it after something was learnt."""
    own = {UNREACHED - 2, 2 * UNREACHED + 3}
    _, _, records = fit(tmp_path, num_updates=2 * UNREACHED + 5, objective=Base(own))
    assert [r["step"] - 1 for r in records if r["outcome"] == "applied"] == sorted(own)
    assert {r["outcome"] for r in records} == {"applied", "unreached"}


def test_an_update_whose_gradient_was_not_finite_had_a_graph():
    failures = Failures(5)
    for step, outcome in enumerate(["unreached"] * (UNREACHED - 1) + ["overflow"] + ["unreached"] * (UNREACHED - 1)):
        failures.watch(Update({"loss": 1.0}, outcome), step, scale=8.0, why_empty=None)
    earlier = Failures(5)
    earlier.load_state_dict({"counts": {"not finite": 1, "overflow": 0, "empty": 0}, "learnt": 0})
    earlier.watch(Update({"loss": 1.0}, "unreached"), 1, scale=None, why_empty=None)


def test_fp16_that_finds_no_scale_ends_with_a_cause():
    """NaN gradients under a finite loss look like overflows, and halve the scale for ever."""
    done, failures, scale = Update({"loss": 1.0, "grad_norm": float("nan")}, "overflow"), Failures(5), 2.0**16
    with pytest.raises(UserError, match=r"it is no overflow.*Set train.mixed_precision=bf16") as found:
        for step in range(1, 60):
            scale /= 2
            failures.watch(done, step, scale=scale, why_empty=None)
    assert "in 17 updates in a row" in str(found.value), "2^16 is below 1 then"
    failures = Failures(5)
    with pytest.raises(UserError, match=f"in {OVERFLOWS} updates in a row"):
        for step in range(1, 60):
            failures.watch(done, step, scale=2.0**30, why_empty=None)


def test_overflows_do_not_excuse_updates_without_a_gradient():
    failures = Failures(2)
    outcomes = ["not finite", "overflow", "not finite"]
    with pytest.raises(UserError, match="in 2 updates in a row"):
        for step, outcome in enumerate(outcomes, 1):
            failures.watch(Update({"loss": 1.0, "grad_norm": 1.0}, outcome), step, scale=8.0, why_empty=None)


def test_counts_come_back():
    first, second = Failures(5), Failures(5)
    first.watch(Update({"loss": 1.0, "grad_norm": 1.0}, "applied"), 1, scale=None, why_empty=None)
    first.watch(Update({"loss": 0.0}, "empty"), 2, scale=None, why_empty=None)
    second.load_state_dict(first.state_dict())
    assert second.counts["empty"] == 1 and second.learnt == 1
    second.finish(2, None)


def root(images, prompts):
    """Finite everywhere; its gradient at 0 is not."""
    return images.mean((1, 2, 3)).sqrt()


def test_a_reward_whose_gradient_is_no_number_is_named_at_the_first_update():
    reward = Composite({"root": Python(PythonConfig(function=f"{__name__}:root"))})
    images = torch.zeros(4, 3, 2, 2)
    images[1:] = 0.5
    metrics = reward.score(images.requires_grad_(), ["a"] * 4).metrics
    assert metrics[f"{CULPRIT}root"].tolist() == [1, 0, 0, 0]
    assert not reward.score(torch.ones(2, 3, 2, 2, requires_grad=True), ["a"] * 2).metrics
    done = Update({"loss": 1.0, "grad_norm": float("nan"), f"{CULPRIT}root": 0.25}, "not finite")
    with pytest.raises(UserError, match=r"score of reward root \(at 25% of the images\) is finite.*a root"):
        Failures(5).watch(done, 1, scale=None, why_empty=None)
    later = Failures(2)
    later.watch(done, 7, scale=None, why_empty=None)  # one image of a long run may be black
    with pytest.raises(UserError, match="score of reward root"):
        later.watch(done, 8, scale=None, why_empty=None)


def test_a_short_run_exports_what_it_has_trained(tmp_path):
    """Decay 0.9999 keeps 99.7 % of the start over 30 updates; with the ramp the average follows."""
    policy, state, _ = fit(tmp_path, num_updates=30, ema=0.9999, optim={"schedule": "constant"})
    trained = weights(policy)
    begun = weights(fit(tmp_path / "one", num_updates=1, optim={"lr": 1e-9})[0])
    with state.average():
        moved = (weights(policy) - begun).norm() / (trained - begun).norm()
    assert float(moved) > 0.5


def test_the_average_ramps_up_to_its_decay_and_comes_back():
    parameter = nn.Parameter(torch.zeros(1))
    ema, expected = EMA([parameter], 0.3), 0.0
    for n in range(5):
        with torch.no_grad():
            parameter.fill_(n + 1.0)
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (n + 1)
    assert float(ema.shadow[0]) == pytest.approx(expected)
    other = EMA([parameter], 0.3)
    other.load_state_dict(ema.state_dict())
    assert other.count == 5 and torch.equal(other.shadow[0], ema.shadow[0])


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (TrainConfig, {"seed": 2**63}),
        (TrainConfig, {"max_grad_norm": float("inf")}),
        (OptimConfig, {"lr": float("inf")}),
        (OptimConfig, {"lr": float("nan")}),
        (OptimConfig, {"betas": (0.9, 1.0)}),
        (OptimConfig, {"betas": (-0.1, 0.9)}),
    ],
)
def test_ranges_are_checked_before_anything_is_made(config, settings):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        config(**settings)


def test_a_large_seed_orders_prompts_too():
    from align.data.prompts import Prompts, PromptsConfig

    for seed in (156680208700286, 2**63 - 1):
        batch = next(iter(Prompts(PromptsConfig(prompts=["a", "b", "c"]), batch_size=3, seed=seed)))
        assert sorted(batch.prompts) == ["a", "b", "c"]

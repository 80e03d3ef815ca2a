"""DDPO and Flow-GRPO: ratios, clips and masks on the tiny Stable Diffusion, gradients on Gaussian data."""

import math
from types import SimpleNamespace

import pytest
import torch
from group_toys import SAMPLING, groups, moved
from pair_toys import gradients, policy_on

from align.data._group_rows import GroupBatch, Rollout
from align.data.groups import GroupsConfig
from align.data.prompts import PromptsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._transitions import EXACT, HALF
from align.objectives.ddpo import DDPO, DDPOConfig
from align.objectives.grpo import GRPO, GRPOConfig
from align.sampling import SamplingConfig
from align.training.trainer import TrainConfig
from samplers import (
    FlowSchedule,
    GaussianDenoiser,
    Prediction,
    Rng,
    TensorCond,
    constant,
    ddim,
    denoise,
    grids,
    noisy,
    sample,
)


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def objective(kind, policy, sampling=SAMPLING, **config):
    return kind(kind.Config(**config), Parts(policy.model, sampling, None, 0))


def batch_for(method, policy, **settings):
    return next(iter(groups(policy, method.wanted, **settings)))


def test_importance_sampling_with_one_update_is_the_score_function(policy):
    score, ratio = objective(DDPO, policy, form="score"), objective(DDPO, policy, form="is")
    batch = batch_for(score, policy)
    first, second = (gradients(policy, method(policy, batch)) for method in (score, ratio))
    assert first.norm() > 1e-6
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-9)


def test_on_all_steps_and_without_its_extras_flow_grpo_is_ddpo(policy):
    first, second = objective(GRPO, policy, cfg_grad="both", clip=1e-3), objective(DDPO, policy, clip=1e-3)
    stream = iter(groups(policy, first.wanted, num_prompts=4))
    next(stream)
    batch = next(stream)
    moved(policy, 0.005)
    one, other = first(policy, batch), second(policy, batch)
    assert torch.equal(one.per_sample, other.per_sample) and one.metrics["clipped"].any()
    assert torch.equal(gradients(policy, one), gradients(policy, other))


@pytest.mark.parametrize("settings", [{}, {"guard": True}, {"mask": 1e-6}, {"kl": 0.1, "guard": True}])
def test_the_ratio_is_exactly_1_before_the_policy_has_moved(policy, settings):
    method = objective(GRPO, policy, **settings)
    loss = method(policy, batch_for(method, policy))
    assert not loss.metrics["ratio_gap"].any() and not loss.metrics["clipped"].any()
    method.after_update(lambda rows: rows)  # what was stored is what is computed now


@pytest.mark.parametrize("kind", [DDPO, GRPO])
def test_another_network_than_the_one_that_drew_is_noticed(policy, kind):
    method = objective(kind, policy)
    batch = batch_for(method, policy)
    method(moved(policy), batch)
    with pytest.raises(UserError, match="do not see the same network"):
        method.after_update(lambda rows: rows)
    method.after_update(lambda rows: rows)  # said once


def test_under_autocast_rounding_explains_as_much_as_in_half_precision(policy):
    method = objective(DDPO, policy)
    batch = batch_for(method, policy)
    assert method.tolerance == EXACT
    with torch.autocast("cpu", torch.bfloat16):
        method(policy, batch)
    assert method.tolerance == HALF


def test_after_the_first_update_the_ratio_is_to_the_policy_that_drew(policy):
    """4 prompts x 3 images, 6 an update: exp(log p - log p_old) of the stored, and rows beyond the clip stand still."""
    method = objective(DDPO, policy, clip=1e-3)
    stream = iter(groups(policy, method.wanted, num_prompts=4))
    next(stream)
    later = next(stream)
    moved(policy, 0.005)
    loss = method(policy, later)
    with torch.no_grad():
        step = method.transition(policy, "train", later, policy.model.text.encode(later.prompts))
    ratio = (step.log_prob(later.x_s) - later.log_prob).exp()
    torch.testing.assert_close(loss.metrics["ratio_gap"], (ratio - 1).abs(), rtol=1e-3, atol=1e-6)
    outside = (ratio - 1) * later.advantage > 1e-3 * later.advantage.abs()
    assert outside.any() and not outside.all()
    for i in range(0, len(later), 3):
        norm = gradients(policy, method(policy, later[i : i + 1])).norm()
        assert (norm == 0) == bool(outside[i])


def test_rows_may_be_cut_in_any_way(policy):
    method = objective(GRPO, policy, kl=0.1, guard=True)
    batch = batch_for(method, policy)
    whole = method(policy, batch)
    parts = torch.cat([method(policy, batch[i : i + 5]).per_sample for i in range(0, len(batch), 5)])
    torch.testing.assert_close(parts, whole.per_sample, rtol=1e-4, atol=1e-5)


def test_the_kl_to_the_reference_is_the_steps_own_and_0_on_a_fresh_adapter(policy, tiny_sd_factory):
    method = objective(GRPO, policy, kl=0.5)
    batch = batch_for(method, policy)
    loss, without = method(policy, batch), objective(GRPO, policy)(policy, batch)
    torch.testing.assert_close(loss.per_sample - without.per_sample, 0.5 * loss.metrics["kl"], rtol=1e-3, atol=1e-5)
    assert loss.metrics["kl"].min() > 0
    fresh = policy_on(tiny_sd_factory(), b_scale=0)
    method = objective(GRPO, fresh, kl=0.5)
    loss = method(fresh, batch_for(method, fresh))
    assert not loss.metrics["kl"].any()


def test_guard_makes_all_steps_count_alike(policy):
    """The gradient with respect to the mean, times what d mean/d v leaves: plain sqrt(h)/g, Guard divided by h: 1."""
    method = objective(GRPO, policy, guard=True)
    batch = batch_for(method, policy)
    h = method._flow_steps(batch)
    assert len(h.unique()) > 1
    plain, guard = objective(GRPO, policy)(policy, batch), method(policy, batch)
    for i in (0, 2):
        a, b = (gradients(policy, kind(policy, batch[i : i + 1])) for kind in (objective(GRPO, policy), method))
        with torch.no_grad():
            std = float(method.transition(policy, "train", batch[i : i + 1], _cond(policy, batch[i : i + 1])).std)
        torch.testing.assert_close(b, a * std / float(h[i]), rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(guard.per_sample * h, plain.per_sample.double(), rtol=1e-5, atol=1e-7)


def _cond(policy, batch):
    return policy.model.text.encode(batch.prompts)


def test_the_mask_stops_what_has_gone_far_the_way_it_should(policy):
    """Beyond the bound and on A's side: no gradient. The others are as without a mask."""
    method, free = objective(GRPO, policy, mask=1e-7, clip=1e9), objective(GRPO, policy, clip=1e9)
    stream = iter(groups(policy, method.wanted, num_prompts=4))
    next(stream)
    batch = next(stream)
    moved(policy, 0.005)
    masked = method(policy, batch).metrics["masked"]
    assert 0 < masked.sum() < len(batch)
    for i in range(0, len(batch), 4):
        found, expected = (gradients(policy, kind(policy, batch[i : i + 1])) for kind in (method, free))
        torch.testing.assert_close(found, torch.zeros_like(found) if masked[i] else expected)


def test_only_the_branches_that_were_asked_for_carry_gradient(policy):
    found = {}
    for grad in ("both", "cond", "none"):
        method = objective(GRPO, policy, cfg_grad=grad)
        batch = batch_for(method, policy)
        loss = method(policy, batch)
        found[grad] = loss.per_sample.detach(), gradients(policy, loss)
    for values, _ in found.values():
        torch.testing.assert_close(values, found["both"][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["cond"][1], 2 * found["none"][1], rtol=1e-4, atol=1e-8)  # guidance 2
    assert not torch.allclose(found["both"][1], found["cond"][1], rtol=1e-2)


def test_what_cannot_work_is_refused():
    plain = {"data": PromptsConfig(prompts=["a"]), "sampling": SamplingConfig()}
    for config in (DDPOConfig(), GRPOConfig()):
        assert {key for key, _ in config.conflicts(plain)} == {"data", "sampling.noise_law"}
    data, train = GroupsConfig(prompts=["a"], group_size=4, num_prompts=4), TrainConfig(batch_size=8)
    recipe = {"data": data, "sampling": SAMPLING, "train": train}
    assert not list(DDPOConfig(form="is").conflicts(recipe)) and not list(GRPOConfig().conflicts(recipe))
    ((key, text),) = DDPOConfig(form="score").conflicts(recipe)
    assert key == ".form" and "several updates" in text


# ---- Gaussian data: x0 ~ N(0, v^2), reward r = c x_0, theta added to the exact prediction --------------------------


class Toy:
    """A model and a policy in one: the exact denoiser with an offset as its parameter."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self, rows: int):
        self.theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.rows, self.network = rows, torch.nn.Linear(1, 1)
        self.text = SimpleNamespace(encode=lambda prompts: constant(torch.zeros(len(prompts), 1, dtype=torch.float64)))

    def role(self, name: str):
        return GaussianDenoiser(self.schedule, self.kind, math.sqrt(0.6), self.theta)


def drawn(toy: Toy, sampling: SamplingConfig, num_steps: int) -> tuple[Rollout, torch.Tensor]:
    """One rollout of the toy as the source would keep it, and its x_0."""
    rows = toy.rows
    rng = Rng(0, range(rows))
    x_T = torch.randn(rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    cond: TensorCond = toy.text.encode([""] * rows)
    walk = sample(toy.role("train"), x_T, grids.flow(num_steps), cond, step=noisy(sampling.law()), keep="all", rng=rng)
    inside = range(num_steps - 1)  # the last has no density
    logs = torch.stack([walk.transitions[i].log_prob(walk.states[i + 1]) for i in inside], 1).detach()
    states = torch.stack(walk.states[:-1], 1).detach()
    numbers, none = torch.arange(rows), torch.empty(rows, 0)
    times = walk.times[:-1]
    return Rollout([""] * rows, numbers, numbers, {}, none, states, logs, none, times), walk.x0.detach()[:, 0]


def test_the_score_functions_expected_gradient_is_the_pathwise_gradient():
    """For r = x_0, E[sum over steps of r grad log p] = d E[x_0]/d theta over the steps with a density: within 3 sd."""
    rows, num_steps = 40_000, 6
    toy, sampling = Toy(rows), SamplingConfig(num_steps=num_steps, guidance_scale=1, eta=1.0)
    found, r = drawn(toy, sampling, num_steps)
    advantage = (r - r.mean()).double()
    image = torch.arange(rows).repeat_interleave(num_steps - 1)
    slot = torch.arange(num_steps - 1).repeat(rows)
    batch = GroupBatch(found, advantage, image, slot, 0, 0, True, {})
    method = DDPO(DDPOConfig(form="score"), Parts(toy, sampling, None, 0))
    size = 2000 * (num_steps - 1)
    parts = [method(toy, batch[i : i + size]).per_sample.sum() / 2000 for i in range(0, len(batch), size)]
    means = torch.stack([-torch.autograd.grad(part, toy.theta)[0] for part in parts])
    mean, error = float(means.mean()), float(means.std() / math.sqrt(len(means)))

    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    schedule, times = toy.schedule, grids.flow(num_steps).times
    x = torch.zeros(1, 1, dtype=torch.float64)  # linear in noise: the mean path carries the whole derivative
    for i in range(num_steps):
        theta = offset if i < num_steps - 1 else offset.detach()
        model = GaussianDenoiser(schedule, toy.kind, math.sqrt(0.6), theta)
        x0, eps = denoise(model, x, times[i], constant(torch.zeros(1, 1, dtype=torch.float64)))
        x = ddim(x0, eps, *schedule(times[i]), *schedule(times[i + 1]), eta=1.0).mean
    (pathwise,) = torch.autograd.grad(x.sum(), offset)
    assert abs(mean - float(pathwise)) < 3 * error and error < 0.1 * abs(float(pathwise))

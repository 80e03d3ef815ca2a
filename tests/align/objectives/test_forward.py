"""NFT, AWM and DGPO: the times and noises they share, their limits, and their optimum on Gaussian data."""

import math
from types import SimpleNamespace

import pytest
import torch
from group_toys import groups, moved
from pair_toys import gradients, policy_on
from pydantic import ValidationError

from align.data._group_rows import GroupBatch, Rollout
from align.data.groups import GroupsConfig
from align.data.prompts import PromptsConfig
from align.objectives._base import Parts
from align.objectives.awm import AWM, AWMConfig
from align.objectives.dgpo import DGPO, DGPOConfig
from align.objectives.nft import NFT, NFTConfig
from align.policy.cast import gather
from align.sampling import SamplingConfig
from align.training.trainer import TrainConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, constant, ddim_law, generator, noise

SAMPLING = SamplingConfig(num_steps=4, guidance_scale=1.0)
KINDS = (NFT, AWM, DGPO)


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def objective(kind, policy, **config):
    """The objective with its roles on the policy; `old` is a copy of where the policy is now."""
    method = kind(kind.Config(**{"num_draws": 2} | config), Parts(policy.model, SAMPLING, None, 0))
    gather(policy, method)
    return method


def batch_for(method, policy, **settings):
    return next(iter(groups(policy, method.wanted, sampling=SAMPLING, **settings)))


def mean_squares(x):
    return x.square().flatten(1).mean(1)


def test_each_look_has_a_time_in_its_stratum_and_a_noise_of_its_own(policy):
    method = objective(AWM, policy, num_draws=4, share_times="image")
    batch = batch_for(method, policy)
    rows, times = method.noised(batch), SAMPLING.grid(policy.model).times[:-1]
    assert rows.t.view(6, 4).tolist() == [times.tolist()] * 6, "as many looks as steps: each time once"
    halves = objective(DGPO, policy, num_draws=2, share_times="image", share_noise=False)
    found = halves.noised(batch_for(halves, policy)).t.view(6, 2)
    assert set(found[:, 0].tolist()) == set(times[:2].tolist()) and set(found[:, 1].tolist()) == set(times[2:].tolist())
    eps = (rows.x_t - rows.alpha.float()[:, None, None, None] * rows.x0) / rows.sigma.float()[:, None, None, None]
    expected = noise(0, "forward/1", [batch.indices[5]], eps.shape[1:])
    torch.testing.assert_close(eps[5:6], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows.u[5:6], expected)  # this model predicts eps
    torch.testing.assert_close(rows.x0_hat(rows.u), rows.x0, rtol=1e-3, atol=1e-3)


def test_what_is_shared_is_shared_and_nothing_else(policy):
    for share, equal in (("group", True), ("update", True), ("image", False)):
        method = objective(AWM, policy_on_again(policy), share_times=share)
        t = method.noised(batch_for(method, policy, group_size=6, batch_size=12)).t.view(2, 6, 2)
        assert bool((t == t[:, :1]).all()) == equal
        assert share != "update" or torch.equal(t[0], t[1])
    method = objective(DGPO, policy_on_again(policy))
    rows = method.noised(batch := batch_for(method, policy))
    noises = rows.u.view(2, 3, 2, -1)
    assert bool((noises == noises[:, :1]).all()) and not torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0, 0, 0], noises[0, 0, 1]) and batch.groups == (0,) * 6 + (1,) * 6


def policy_on_again(policy):
    """The same network without the adapters that an earlier objective asked for."""
    from align.policy.roles import Policy

    policy.adapter.network.delete_adapters("old") if "old" in policy.adapters else None
    return Policy(policy.model, policy.adapter)


def test_without_advantages_nft_pulls_to_the_old_policy_and_to_nothing_else(policy):
    method = objective(NFT, policy, reference=0.0)
    batch = flat(batch_for(method, policy))
    assert gradients(policy, method(policy, batch)).norm() < 1e-6, "at the old policy there is nothing to do"
    before = float(method(moved(policy), batch).metrics["moved"].mean())
    gradient = gradients(policy, method(policy, batch))
    with torch.no_grad():
        start = 0
        for parameter in policy.adapter.parameters():
            parameter -= 1e-3 * gradient[start : start + parameter.numel()].view_as(parameter) / gradient.norm()
            start += parameter.numel()
    assert float(method(policy, batch).metrics["moved"].mean()) < before


def flat(batch):
    return GroupBatch(**{**vars(batch), "advantages": torch.zeros_like(batch.advantages)})


def best(batch, value=5.0):
    return GroupBatch(**{**vars(batch), "advantages": torch.full_like(batch.advantages, value)})


def test_the_best_images_of_nft_are_plain_fine_tuning(tiny_sd_factory):
    """r = 1 and b = 1: L = A_max mean (x0_hat - x_0)^2, and its gradient, without the normalisation."""
    policy = policy_on(tiny_sd_factory())
    method = objective(NFT, policy, reference=0.0, normalise=False, gain=1.0)
    batch = best(batch_for(method, policy))
    loss, rows = method(policy, batch), method.noised(batch)
    out = policy.role("train")(rows.x_t, rows.t, policy.model.text.encode(batch.prompts))
    expected = mean_squares(rows.x0_hat(out) - rows.x0)
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(expected.mean(), policy.adapter.parameters())
    torch.testing.assert_close(gradients(policy, loss), torch.cat([g.flatten() for g in found]), rtol=1e-3, atol=1e-6)


def test_nfts_normalisation_is_each_branchs_own_mean_error(policy):
    method = objective(NFT, policy, reference=0.0, b=0.5)
    batch = batch_for(method, policy)
    loss, rows = method(moved(policy), batch), method.noised(batch)
    cond = policy.model.text.encode(batch.prompts)
    with torch.no_grad():
        v, old = (rows.x0_hat(policy.role(name)(rows.x_t, rows.t, cond)) for name in ("train", "old"))
    r, expected = (batch.advantage / 5 + 1) / 2, torch.zeros(len(batch))
    for share, sign in ((r, 1), (1 - r, -1)):
        gap = old + sign * 0.5 * (v - old) - rows.x0
        expected = expected + share * mean_squares(gap) / gap.abs().flatten(1).mean(1)
    torch.testing.assert_close(loss.per_sample, 10 * expected, rtol=1e-3, atol=1e-4)


def test_who_draws_and_how_the_old_role_follows(policy):
    nft, awm = objective(NFT, policy), AWMConfig(num_draws=1)
    assert nft.wanted.role == "old" and [nft.config.decay(step) for step in (1, 100, 9999)] == [0.001, 0.1, 0.5]
    ocr = NFTConfig(old_wait=75, old_rate=0.0075, old_decay=0.999)
    assert [ocr.decay(step) for step in (1, 75, 76, 9999)] == [0, 0, 0.0075, 0.999]
    assert awm.decay(100) == 0.1 and awm.decay(9999) == 0.3


@pytest.mark.parametrize("weight", ["uniform", "t", "t2", "ghuber"])
def test_awm_is_the_ppo_form_at_ratio_1(policy, weight):
    """Gradient of max(-A R, ...) with R = exp(-w + sg(w)) is A grad w."""
    method = objective(AWM, policy, weight=weight, reference=0.0, old=0.5)
    batch = batch_for(method, policy)
    loss, rows = method(policy, batch), method.noised(batch)
    out = policy.role("train")(rows.x_t, rows.t, policy.model.text.encode(batch.prompts))
    error, t = mean_squares(out - rows.u), rows.flow_time.float()
    w = {"uniform": error, "t": t * error, "t2": t**2 * error, "ghuber": 4 * t * (error + 1e-10) ** 0.25}[weight]
    ratio = (-w + w.detach()).exp()
    expected = torch.autograd.grad((-batch.advantage * ratio).mean(), policy.adapter.parameters())
    torch.testing.assert_close(
        gradients(policy, loss), torch.cat([g.flatten() for g in expected]), rtol=1e-3, atol=1e-6
    )


def test_awm_has_a_floor_only_by_its_pulls(policy):
    with pytest.raises(ValidationError, match="no lower bound"):
        AWMConfig(reference=0.0, old=0.0)
    method = objective(AWM, policy, reference=0.0, old=2.0)
    batch = flat(batch_for(method, policy))
    loss = method(moved(policy), batch)
    torch.testing.assert_close(loss.per_sample, 2 * loss.metrics["moved"])
    assert loss.metrics["moved"].min() > 0


def test_dgpos_weight_is_a_half_at_the_reference_and_of_the_whole_group(tiny_sd_factory):
    fresh = policy_on(tiny_sd_factory(), b_scale=0)
    method = objective(DGPO, fresh, beta=50.0, reference=0.0)
    batch = batch_for(method, fresh)
    margins = method.before_update(fresh, [batch[:5], batch[5:]], lambda rows: rows)
    assert set(margins) == {(g, j) for g in (0, 1) for j in (0, 1)} and not any(margins.values())
    loss = method(fresh, batch, margins)
    torch.testing.assert_close(loss.per_sample, 0.5 * batch.advantage * loss.metrics["error"])


def test_dgpos_margin_is_the_sum_over_the_group_however_it_is_cut(policy):
    method = objective(DGPO, policy, beta=50.0, reference=0.0)
    batch = batch_for(method, policy)
    whole = method.before_update(policy, [batch], lambda rows: rows)
    rows, cond = method.noised(batch), policy.model.text.encode(batch.prompts)
    with torch.no_grad():
        errors = [mean_squares(policy.role(n)(rows.x_t, rows.t, cond) - rows.u) for n in ("train", "reference")]
    gains = (batch.advantage * (errors[0] - errors[1])).view(2, 3, 2).sum(1)
    for (group, look), margin in whole.items():
        assert margin == pytest.approx(float(50 / 3 * gains[group, look]), rel=1e-3, abs=1e-5)
    cut = method.before_update(policy, [batch[i : i + 5] for i in range(0, 12, 5)], lambda rows: rows)
    assert cut == pytest.approx(whole, rel=1e-3, abs=1e-5)
    loss = method(policy, batch, whole)
    weight = torch.tensor(
        [1 / (1 + math.exp(-whole[key])) for key in zip(batch.groups, batch.slot.tolist(), strict=True)]
    )
    torch.testing.assert_close(loss.per_sample, weight * batch.advantage * errors[0], rtol=1e-4, atol=1e-6)
    per_part = torch.cat([method(policy, batch[i : i + 5], whole).per_sample for i in range(0, 12, 5)])
    torch.testing.assert_close(per_part, loss.per_sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pull_to_the_base_does_not_change_the_gradient_at_it(tiny_sd_factory, kind):
    """v = v_ref: mean |out - out_ref|^2 has none there; elsewhere its weight counts."""
    fresh = policy_on(tiny_sd_factory(), b_scale=0)
    found = []
    for reference in (0.0, 10.0):
        own = policy_on_again(fresh)
        method = objective(kind, own, reference=reference)
        found.append(gradients(own, method(own, batch_for(method, own))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_what_cannot_work_is_refused():
    recipe = {"data": PromptsConfig(prompts=["a"]), "sampling": SamplingConfig(num_steps=3)}
    for config in (NFTConfig(num_draws=4), AWMConfig(num_draws=4), DGPOConfig(num_draws=4)):
        assert {key for key, _ in config.conflicts(recipe)} == {"data", ".num_draws"}
    several = {"data": GroupsConfig(prompts=["a"], group_size=4, num_prompts=4), "train": TrainConfig(batch_size=8)}
    assert {key for key, _ in AWMConfig().conflicts(several)} == {"data.num_prompts"}
    assert not list(NFTConfig().conflicts(several)) and not list(DGPOConfig().conflicts(several))


# ---- Gaussian data: x0 ~ N(0, S^2), r = 1/2 + k x0, old = the exact model ------------------------------------------

S2, T, K, B = 0.6, 0.5, 0.05, 0.3


class Toy:
    """The exact velocity, to which "train" adds a constant theta. An offset of x0_hat is -t times one of v."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self):
        self.network = torch.nn.Linear(1, 1)
        self.theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.text = SimpleNamespace(encode=lambda prompts: constant(torch.zeros(len(prompts), 1, dtype=torch.float64)))

    def grids(self, *_):
        return SimpleNamespace(times=torch.tensor([T, 0.0], dtype=torch.float64), init_scale=1.0)

    def latent_shape(self, image_size=None):
        return (1,)

    def role(self, name):
        offset = -T * (self.theta if name == "train" else torch.zeros((), dtype=torch.float64))
        return GaussianDenoiser(self.schedule, self.kind, math.sqrt(S2), offset)


def test_nfts_optimum_is_the_closed_form():
    """d* = (2/b) Cov(r, u | x_t) = -(2k/b) S^2 t/V_t = -.25, by Monte Carlo: the loss is a parabola in theta."""
    rows, most = 40_000, 5.0
    toy = Toy()
    x0 = math.sqrt(S2) * torch.randn(rows, 1, dtype=torch.float64, generator=generator(0, "x0", 0))
    advantage = 2 * most * K * x0[:, 0]  # r = 1/2 + k x0
    numbers, none = torch.arange(rows), torch.empty(rows, 0)
    rollout = Rollout([""] * rows, numbers, numbers, {}, x0, none, none, none, torch.empty(0))
    batch = GroupBatch(rollout, advantage, numbers, torch.zeros(rows, dtype=torch.int64), 0, 0, True, {})
    config = NFTConfig(b=B, most=most, num_draws=1, normalise=False, reference=0.0)
    method = NFT(config, Parts(toy, SamplingConfig(num_steps=1, guidance_scale=1), None, 0))
    slopes = []
    for value in (0.0, -1.0):
        with torch.no_grad():
            toy.theta.fill_(value)
        slopes.append(float(torch.autograd.grad(method(toy, batch).per_sample.mean(), toy.theta)[0]))
    optimum = -slopes[0] / (slopes[0] - slopes[1])
    v_t = (1 - T) ** 2 * S2 + T**2
    assert -(2 * K / B) * S2 * T / v_t == pytest.approx(-0.25)
    assert optimum == pytest.approx(-0.25, abs=0.03)


@pytest.mark.parametrize(("h", "extra"), [(0.1, 1.80), (0.05, 4.44), (0.01, 26.0)])
def test_ddpos_target_is_the_image_plus_noise_that_grows_as_steps_shrink(h, extra):
    """With DDIM(1), x_s = k x_0 + (c/t) x_t + std z, k = (1 - s) - c (1 - t)/t: std^2/k^2 of variance beside AWM's."""
    t = torch.tensor(0.6, dtype=torch.float64)
    s = t - h
    std, c = ddim_law(1.0)(*FlowSchedule()(t), *FlowSchedule()(s))
    k = (1 - s) - c * (1 - t) / t
    assert float(std**2 / k**2) == pytest.approx(extra, rel=5e-3)

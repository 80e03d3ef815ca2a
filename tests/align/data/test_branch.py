"""TailorPO as a judge-and-continue policy of branching rollouts: who wins, who goes on, and the guided winner."""

from types import SimpleNamespace

import pytest
import torch
from pair_toys import gradients, policy_on, workplace

from align.data._branch import Rows, branch, judged
from align.data.prompts import PromptBatch
from align.data.rollouts import RolloutsConfig, TransitionBatch
from align.objectives._base import Parts
from align.objectives.spo import SPO, SPOConfig
from align.sampling import SamplingConfig
from rewards.brightness import BrightnessConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, constant, ddim_law, noisy, split

SAMPLING = SamplingConfig(num_steps=4, guidance_scale=2.0, eta=1.0)
BATCH = PromptBatch(("a cat", "two", "x"), (0, 1, 2), 0)
W = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def policy(tiny_sd_factory):
    """Pixels are latents: what a judge sees is x0_hat, or at the last step x itself."""
    policy = policy_on(tiny_sd_factory())
    policy.model.codec.decode = lambda x: x
    return policy


def linear(sign: float = 1.0):
    """r(x) = <w, x>"""
    return lambda images, prompts, t: sign * (images * W.expand_as(images)).flatten(1).sum(1)


def rolled(policy, judge=None, **config) -> Rows:
    settings = {"prompts": ["a"], "num_candidates": 2, "first_step": 1, "gap": 0.0} | config
    chosen = RolloutsConfig(**settings)
    return judged(chosen, branch(chosen, workplace(policy, sampling=SAMPLING), judge or linear(), BATCH))


def steps(rows: Rows) -> list[Rows]:
    """By step, from noise to data."""
    return [rows.at(rows.t == t) for t in sorted(rows.t.unique().tolist(), reverse=True)]


def test_tailorpo_goes_on_from_the_winner(policy):
    first, second, third = steps(rolled(policy, continue_from="winner"))
    assert torch.equal(second.x_t, first.x_w) and torch.equal(third.x_t, second.x_w)
    random, after, _ = steps(rolled(policy))
    assert torch.equal(random.x_w, first.x_w) and not torch.equal(after.x_t, random.x_w)


def test_without_guidance_nothing_moves(policy):
    plain, off = rolled(policy), rolled(policy, guide=0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    slightly = rolled(policy, guide=1e-4)
    torch.testing.assert_close(slightly.x_w, plain.x_w, rtol=0, atol=1e-2)
    assert not torch.equal(slightly.x_w, plain.x_w)


def test_a_linear_reward_of_the_state_rises_by_kappa_std_root_d_times_its_gradient(policy):
    """At the last step, where the state is what is judged."""
    kappa, last = 0.1, -1
    plain, guided = (steps(rolled(policy, guide=g, first_step=3))[last] for g in (0.0, kappa))
    grid = SAMPLING.grid(policy.model)
    alphas, sigmas = policy.model.schedule(grid.times)
    zero = torch.zeros(1)
    std = float(noisy(ddim_law(1.0))(zero, zero, alphas[3], sigmas[3], alphas[4], sigmas[4]).std)
    rise = guided.scores[:, 0] - plain.scores[:, 0]
    expected = kappa * std * W.numel() ** 0.5 * float(W.norm())
    assert expected > 0.01
    torch.testing.assert_close(rise, torch.full_like(rise, expected), rtol=2e-3, atol=1e-4)
    assert torch.equal(guided.x_l, plain.x_l) and torch.equal(guided.scores[:, 1], plain.scores[:, 1])
    direction = W / W.norm() * kappa * std * W.numel() ** 0.5
    torch.testing.assert_close(guided.x_w - plain.x_w, direction.expand_as(plain.x_w), rtol=1e-3, atol=1e-5)


def test_a_move_that_does_not_raise_the_score_is_not_made(policy):
    """A reward that falls off behind a ridge which is nearer than the step."""

    def ridge(images, prompts, t):
        along = (images * W.expand_as(images)).flatten(1).sum(1)
        return -(along - along.detach() - 1e-6).abs() - 1e6 * ((along - along.detach()).abs() > 0)

    plain, guided = (
        rolled(policy, lambda i, p, t: ridge(i, p, t) + 0 * i.flatten(1).sum(1), guide=g) for g in (0.0, 5.0)
    )
    assert torch.equal(plain.x_w, guided.x_w)


def test_a_gap_in_standard_deviations_is_of_the_steps_scores(policy):
    rows = rolled(policy, gap=0.5, gap_in="std")
    for own in steps(rows):
        spread = own.scores.std(correction=0)
        expected = (own.scores[:, 0] - own.scores[:, 1]) / spread
        torch.testing.assert_close(own.gap, expected.float())
        assert torch.equal(own.kept, (expected > 0.5).float())
    assert 0 < rows.kept.sum() < len(rows.kept)
    scaled = rolled(policy, lambda *seen: 100 * linear()(*seen), gap=0.5, gap_in="std")
    assert torch.equal(scaled.kept, rows.kept), "whatever the reward's scale"


def test_swapped_rewards_negate_the_gradient_at_the_reference(tiny_sd_factory):
    policy = policy_on(tiny_sd_factory(), b_scale=0)
    policy.model.codec.decode = lambda x: x
    found = []
    for sign in (1.0, -1.0):
        rows = rolled(policy, linear(sign), first_step=3)
        batch = TransitionBatch(rows, BATCH.prompts, BATCH.indices, 0)
        method = SPO(SPOConfig(), Parts(policy.model, SAMPLING, None, 0))
        found.append(gradients(policy, method(policy, batch)))
    assert found[0].norm() > 1e-5
    torch.testing.assert_close(found[0], -found[1], rtol=1e-5, atol=1e-8)


def test_from_one_state_the_gradient_moves_the_mean_from_loser_to_winner():
    """-grad L = beta sigmoid(-z) (x_w - x_l)^T d mu/(std^2 D): the steps' noise cancels. In float64, to 1e-6."""
    shape, beta = (3, 4), 2.0
    theta = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    roles = {
        name: GaussianDenoiser(FlowSchedule(), Prediction.FLOW, 0.7, offset)
        for name, offset in (("train", theta), ("reference", torch.zeros_like(theta.detach())))
    }
    policy = SimpleNamespace(role=roles.get)
    text = SimpleNamespace(encode=lambda prompts: constant(torch.zeros(len(prompts), *shape, dtype=torch.float64)))
    sampling = SamplingConfig(num_steps=4, guidance_scale=1.0, eta=1.0)
    x_t, x_w, x_l = torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    rows = Rows(x_t, x_w, x_l, t, s, torch.ones(1), torch.ones(1), torch.zeros(1, dtype=torch.long), torch.zeros(1, 2))
    method = SPO(
        SPOConfig(beta=beta, clamp=None),
        Parts(SimpleNamespace(network=torch.nn.Linear(1, 1), text=text), sampling, None, 0),
    )
    loss = method(policy, TransitionBatch(rows, ("",), (0,), 0))
    (found,) = torch.autograd.grad(loss.per_sample.sum(), theta)
    denoiser = roles["train"]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
    x0, eps = split(denoiser(x_t, t, text.encode([""])), x_t, alpha_t, sigma_t, denoiser.kind)
    step = noisy(sampling.law())(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
    (along,) = torch.autograd.grad(((x_w - x_l) * step.mean).sum(), theta)
    z = float((loss.metrics["log_ratio_w"] - loss.metrics["log_ratio_l"])[0])
    factor = beta / (1 + 2.718281828459045 ** (beta * z)) / (float(step.std.flatten()[0]) ** 2 * theta.numel())
    assert abs(z) > 1e-2
    torch.testing.assert_close(-found, factor * along, rtol=1e-6, atol=0)


def test_guidance_wants_rewards_with_a_gradient():
    from align.config import load_recipe
    from align.errors import UserError

    recipe = {
        "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
        "objective": "spo",
        "data": {"name": "rollouts", "prompts": ["a"], "guide": 0.1},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 6, "eta": 1.0},
    }
    load_recipe(recipe)
    with pytest.raises(UserError, match=r"rewards\.judge: is not differentiable: rollouts"):
        load_recipe(recipe | {"rewards": {"judge": {}}})
    with pytest.raises(UserError, match=r"data\.guide: follows the gradient of rewards"):
        load_recipe(recipe | {"data": recipe["data"] | {"spm": "x"}})
    assert BrightnessConfig().has_gradient()

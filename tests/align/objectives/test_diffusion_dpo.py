"""Diffusion-DPO against its closed forms, on the tiny Stable Diffusion from pixels and on the Gaussian toy."""

import math
from types import SimpleNamespace

import pytest
import torch
from pair_toys import gradients, policy_on, prepared, write_pairs

from align.data.preferences import PairBatch, Pairs
from align.data.prompts import PromptsConfig
from align.errors import UserError
from align.models._base import Posterior
from align.objectives._base import Parts
from align.objectives._preference import TimesConfig, error_scale
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.policy.lora import AdapterConfig
from samplers import FlowSchedule, GaussianDenoiser, Prediction, Rng, VPSchedule, add_noise, constant, split, target

TABLE = VPSchedule((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0))


@pytest.fixture(scope="module")
def pipeline(tiny_sd_factory):
    return tiny_sd_factory()


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def objective(policy, **config):
    return DiffusionDPO(DiffusionDPOConfig(**config), Parts(policy.model, None, None, 3))


def first(source) -> PairBatch:
    return next(iter(source))


SETTINGS = {
    "plain": ({}, {}),
    "flips and dropped prompts": ({"views": {"flip": True}}, {"prompt_dropout": 0.5}),
    "random crops in buckets": (
        {"views": {"buckets": True, "bucket_step": 8, "crop": "random", "image_size": [24, 24]}},
        {"times": {"law": "logit_normal"}},
    ),
    "guard, another space, fixed draws": ({}, {"guard": True, "loss_space": "x0", "num_draws": 2}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_identical_pair_gives_log_2_and_no_gradient(policy, tmp_path, setting):
    """From pixels, with an adapter that does something."""
    views, config = SETTINGS[setting]
    same = prepared(policy, write_pairs(tmp_path / "same", identical=True), **views)
    other = prepared(policy, write_pairs(tmp_path / "other"), **views)
    method = objective(policy, beta=50.0, **config)
    loss = method(policy, first(same))
    torch.testing.assert_close(loss.per_sample, torch.full((4,), math.log(2)), rtol=1e-5, atol=0)
    scale = gradients(policy, method(policy, first(other))).norm()
    assert scale > 1e-3
    assert gradients(policy, loss).norm() < 1e-4 * scale


def test_a_fresh_adapter_starts_at_log_2_with_a_gradient(pipeline, tmp_path):
    policy = policy_on(pipeline, b_scale=0)
    loss = objective(policy)(policy, first(prepared(policy, write_pairs(tmp_path))))
    assert torch.equal(loss.per_sample, torch.full((4,), math.log(2)))
    assert loss.metrics["accuracy"].tolist() == [0.5] * 4
    assert gradients(policy, loss).norm() > 1e-3


def test_our_5000_is_the_2500_of_diffusers_script(policy, tmp_path):
    """loss = -logsigmoid(beta (ref_diff - model_diff)), the differences being of mean squared errors."""
    batch = first(prepared(policy, write_pairs(tmp_path)))
    method = objective(policy, beta=2500.0, beta_convention="diffusers")
    assert method.beta == objective(policy, beta=5000.0).beta
    loss = method(policy, batch)
    pairs, rng = batch.load(), Rng(3, batch.indices)
    mean = pairs.winner.mean
    z, eps = rng.normal("vae", mean), rng.normal("eps", mean)
    t = TimesConfig().draw(rng, policy.model.schedule, mean)
    difference = {}
    for role in ("train", "reference"):
        errors = []
        for posterior in (pairs.winner, pairs.loser):
            x_t = add_noise(policy.model.schedule, posterior.mean + (0.5 * posterior.logvar).exp() * z, eps, t)
            out = policy.role(role)(x_t, t, pairs.cond)
            errors.append((out - eps).square().mean((1, 2, 3)))
        difference[role] = errors[0] - errors[1]
    theirs = -torch.nn.functional.logsigmoid(2500 * (difference["reference"] - difference["train"]))
    torch.testing.assert_close(loss.per_sample, theirs, rtol=2e-3, atol=1e-4)
    assert loss.per_sample.std() > 0.1


def test_beta_is_printed_in_all_conventions(policy):
    (note,) = objective(policy, beta=2.0, beta_convention="sum").notes
    assert note.startswith(
        "beta: 512 in the paper's convention, 256 in diffusers' script, 2 with errors summed over 256"
    )


@pytest.mark.parametrize("kind", [Prediction.V, Prediction.EPSILON, Prediction.FLOW])
@pytest.mark.parametrize("space", ["eps", "x0"])
def test_an_error_in_another_space_is_the_same_error_scaled(kind, space):
    """|d eps|^2 = alpha^2 |d v|^2 on a VP table, (1 - t)^2 |d v|^2 on a flow; likewise for x0 with sigma^2, t^2."""
    schedule = FlowSchedule() if kind is Prediction.FLOW else TABLE
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule(t)
    torch.manual_seed(0)
    x0, eps, noise = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    x_t = add_noise(schedule, x0, eps, t)
    out = target(x0, eps, alpha, sigma, kind) + noise
    predicted = split(out, x_t, alpha, sigma, kind)
    direct = (predicted[1] - eps if space == "eps" else predicted[0] - x0).square().mean(1)
    factor = error_scale(DiffusionDPOConfig(loss_space=space), schedule, kind, t)
    torch.testing.assert_close(factor * noise.square().mean(1), direct)
    if kind in (Prediction.V, Prediction.FLOW):
        torch.testing.assert_close(factor, (alpha if space == "eps" else sigma).square())


def test_weights_of_times():
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    alpha, sigma = FlowSchedule()(t)
    found = error_scale(DiffusionDPOConfig(t_weighting="snr"), FlowSchedule(), Prediction.EPSILON, t)
    torch.testing.assert_close(found, (alpha / sigma) ** 2)


ZERO_SNR = VPSchedule(torch.cat([(1 - torch.linspace(1e-4, 0.02, 999)).cumprod(0), torch.zeros(1)]))


@pytest.mark.parametrize("kind", list(Prediction))
@pytest.mark.parametrize("space", ["native", "eps", "x0"])
def test_min_snr_is_the_same_loss_in_every_space(kind, space):
    """min(snr, 5) |x0_hat - x0|^2, Hang et al.'s, whatever the network predicts; 0 at zero SNR, where it is no 0/0."""
    schedule = FlowSchedule() if kind is Prediction.FLOW else TABLE
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule(t)
    torch.manual_seed(0)
    x0, eps, noise = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    out = target(x0, eps, alpha, sigma, kind) + noise
    predicted, _ = split(out, add_noise(schedule, x0, eps, t), alpha, sigma, kind)
    config = DiffusionDPOConfig(t_weighting="min_snr", loss_space=space)
    weighted = error_scale(config, schedule, kind, t) * noise.square().mean(1)
    expected = (alpha / sigma).square().clamp(max=5) * (predicted - x0).square().mean(1)
    torch.testing.assert_close(weighted, expected)
    if kind is not Prediction.EPSILON:  # which says nothing of the image at pure noise, and is refused there
        last = torch.tensor([1.0], dtype=torch.float64)
        assert error_scale(config, FlowSchedule() if kind is Prediction.FLOW else ZERO_SNR, kind, last).tolist() == [0]


def test_the_laws_of_times():
    rng, like = Rng(0, range(4000)), torch.empty(4000, 1)
    uniform = TimesConfig().draw(rng, TABLE, like)
    assert torch.equal(uniform * 1000, (uniform * 1000).round()) and 1 <= uniform.min() * 1000 < 5
    torch.testing.assert_close(uniform.mean(), torch.tensor(0.5005).double(), rtol=0, atol=0.015)
    turbo = TimesConfig(law="turbo").draw(rng, TABLE, like)
    assert (turbo * 1000 - 1).round().unique().tolist() == [249, 499, 749, 999]
    normal = TimesConfig(law="logit_normal", mean=0.5, std=0.7).draw(rng, FlowSchedule(), like)
    logits = torch.logit(normal)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.04) and float(logits.std()) == pytest.approx(0.7, abs=0.03)
    shifted = TimesConfig(law="logit_normal", mean=0.5, std=0.7, shift=3.0).draw(rng, FlowSchedule(), like)
    torch.testing.assert_close(shifted, 3 * normal / (1 + 2 * normal))


def test_the_guard_changes_gradients_and_no_value(policy, tmp_path):
    batch = first(prepared(policy, write_pairs(tmp_path)))
    plain, guarded = (objective(policy, beta=50.0, guard=guard)(policy, batch) for guard in (False, True))
    torch.testing.assert_close(guarded.per_sample, plain.per_sample, rtol=1e-4, atol=1e-6)
    one, other = (gradients(policy, loss) for loss in (plain, guarded))
    assert (other - one).norm() > 1e-3 * one.norm()


def test_a_dropped_prompt_is_dropped_for_both(policy, tmp_path):
    pairs = first(prepared(policy, write_pairs(tmp_path))).load()
    winner, loser = (cond.tensors["text"] for cond in pairs.conds([False, True, False, True]))
    empty = policy.model.text.encode([""]).tensors["text"][0]
    assert torch.equal(winner, loser)
    assert [torch.equal(row, empty) for row in winner] == [False, True, False, True]
    seen = objective(policy, prompt_dropout=0.5)(policy, first(prepared(policy, tmp_path)))
    unseen = objective(policy)(policy, first(prepared(policy, tmp_path)))
    assert 0 < int((seen.per_sample != unseen.per_sample).sum()) < 4


def test_rows_do_not_depend_on_the_cut(policy, tmp_path):
    batch = first(prepared(policy, write_pairs(tmp_path), views={"flip": True}))
    method = objective(policy, beta=20.0, prompt_dropout=0.5)
    whole = method(policy, batch).per_sample
    parts = torch.cat([method(policy, batch[rows]).per_sample for rows in (slice(0, 1), slice(1, 4))])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_fixed_draws_spare_the_reference_pass_and_change_nothing(policy, tmp_path):
    source = prepared(policy, write_pairs(tmp_path, 2), batch_size=2)
    method = objective(policy, beta=20.0, num_draws=1)
    stream = iter(source)
    losses, calls = [], []
    for _ in range(2):  # two epochs of the same two pairs at the same draws
        batch = next(stream)
        before = policy.calls.forward
        method.before_update(policy, [batch], lambda rows: rows)
        losses.append(method(policy, batch).per_sample[torch.tensor(batch.rows).argsort()])
        calls.append(policy.calls.forward - before)
    assert calls == [4 + 4, 4]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    resumed = objective(policy, beta=20.0, num_draws=1)
    resumed.load_state_dict(method.state_dict())
    assert resumed.reference == method.reference and len(method.reference) == 2


def test_a_run_that_blows_up_ends_with_a_message(policy):
    method = objective(policy)
    for _ in range(9):
        method.watch({"err_w": 2.1, "gap_w": 1.1})
    method.watch({"err_w": 1.9, "gap_w": 0.9})  # one good update: counted anew
    for _ in range(9):
        method.watch({"err_w": 2.1, "gap_w": 1.1})
    with pytest.raises(UserError, match=r"2\.1 against 1\b.*Lower optim.lr"):
        method.watch({"err_w": 2.1, "gap_w": 1.1})


def test_what_cannot_work_is_refused():
    found = dict(
        DiffusionDPOConfig().conflicts({"adapter": AdapterConfig(dropout=0.1), "data": PromptsConfig(prompts="x.txt")})
    )
    assert "different masks" in found["adapter.dropout"] and "no pairs" in found["data"]


# The Gaussian toy: theta is added to the predicted x0; pixels are latents.

SHAPE, STD = (3, 2, 2), 0.7


class Roles:
    def __init__(self, theta):
        self.roles = {
            "train": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, STD, theta),
            "reference": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, STD),
        }

    def role(self, name):
        return self.roles[name]


class ToyBatch:
    """Pairs given as latents, without noise of an autoencoder."""

    step = 0

    def __init__(self, winner, loser):
        self.indices = range(len(winner))
        none = torch.full_like(winner, -math.inf)
        cond = constant(torch.zeros_like(winner))
        self.pairs = Pairs(Posterior(winner, none), Posterior(loser, none), cond, cond[:1], lambda c: (c, c))

    def load(self):
        return self.pairs


def toy_objective(**config):
    model = SimpleNamespace(latent_shape=lambda: SHAPE)
    return DiffusionDPO(DiffusionDPOConfig(**config), Parts(model, None, None, 0))


def test_bradley_terry_pairs_of_a_linear_reward_move_the_mean_to_mu_plus_v2_w_over_beta():
    """At t -> 1 the error says |x0 - (mu + theta)|^2, which is -2 v^2 log p: with beta/v^2 for beta the optimum of the
    policy N(mu + theta, v^2) against N(mu, v^2) is theta = v^2 w/beta (errors summed over dimensions)."""
    generator = torch.Generator().manual_seed(0)
    n, beta = 3000, 2.0
    w = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    a, b = (STD * torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    prefers_a = torch.rand(n, generator=generator) < torch.sigmoid(((a - b) * w).flatten(1).sum(1))
    keep = prefers_a.view(-1, 1, 1, 1)
    batch = ToyBatch(torch.where(keep, a, b), torch.where(keep, b, a))
    method = toy_objective(
        beta=beta / STD**2,
        beta_convention="sum",
        loss_space="x0",
        times={"law": "logit_normal", "mean": 12.0, "std": 0.1},
    )
    theta = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], lr=1.0, max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = method(Roles(theta), batch).per_sample.mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = STD**2 * w / beta
    error = float((theta.detach() - expected).norm() / expected.norm())
    assert error < 0.12, f"{error:.3f}: 3,000 labels resolve about 0.06"
    assert float((0.5 * theta.detach() - expected).norm() / expected.norm()) > 0.4


def test_the_guard_keeps_the_winners_error_from_rising_to_first_order():
    """A loser on the winner's side of the prediction, farther out: pushing it away pushes the winner away too."""
    winner = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    batch = ToyBatch(winner, 3 * winner)
    rises = {}
    for guard in (False, True):
        theta = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
        method = toy_objective(beta=10.0, guard=guard, times={"law": "logit_normal", "mean": 3.0, "std": 0.1})
        loss = method(Roles(theta), batch)
        (gradient,) = torch.autograd.grad(loss.per_sample.sum(), theta)
        step = 1e-4
        moved = method(Roles(-step * gradient), batch).metrics["err_w"]
        rises[guard] = float((moved - loss.metrics["err_w"]) / step)
    assert rises[False] > 0.1
    assert rises[True] < 1e-3 * rises[False]

"""DRO and what bounds it, on Gaussian data and on the tiny Stable Diffusion."""

import math

import pytest
import torch
from label_toys import SHAPE, LabelledLatents, PairedLatents, Roles, labelled, write_labels
from pair_toys import gradients, policy_on, prepared, write_pairs

from align.data.labels import LabelsConfig
from align.data.preferences import PreferencesConfig
from align.data.prompts import PromptsConfig
from align.objectives._base import Parts
from align.objectives.dro import DRO, DROConfig, snpo_margin

BOUNDS = ["guard", "clamp", "snpo", "none"]
ZERO = torch.zeros(SHAPE, dtype=torch.float64)


def objective(**config) -> DRO:
    return DRO(DROConfig(**config), Parts(None, None, None, 0))


@pytest.mark.parametrize("bound", BOUNDS)
def test_one_image_as_good_and_bad_has_no_gradient_at_the_reference(tiny_sd_factory, tmp_path, bound):
    """From pixels: the two halves of a pair meet one t, one eps and one noise of the autoencoder. SNPO's bad half is
    lam times the good one's there."""
    policy = policy_on(tiny_sd_factory(), b_scale=0)
    same, other = (
        next(iter(prepared(policy, write_pairs(tmp_path / str(identical), identical=identical))))
        for identical in (True, False)
    )
    method = objective(bound=bound, lam=1 - 1e-12)
    scale = gradients(policy, method(policy, other)).norm()
    assert scale > 1e-4
    assert gradients(policy, method(policy, same)).norm() < 1e-4 * scale


def test_the_unbounded_loss_is_the_mean_of_signed_errors():
    x, good = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64), [True, False] * 2
    method, theta = objective(bound="none"), 0.3 + ZERO
    rows = method.noised(Roles(theta), LabelledLatents(x, good))
    error = method.error(Roles(theta), "train", rows)
    losses = method(Roles(theta), LabelledLatents(x, good)).per_sample
    assert torch.equal(losses, error * torch.tensor([1.0, -1.0] * 2))
    pair = objective(bound="none")(Roles(theta), PairedLatents(x[:2], x[2:]))
    assert len(pair.per_sample) == 2 and float(pair.metrics["accuracy"].mean()) <= 1
    expected = (pair.metrics["err_w"] - pair.metrics["err_l"]) / 2
    torch.testing.assert_close(pair.per_sample, expected)


def test_past_c_times_the_references_error_a_bad_image_has_no_gradient():
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    for shift, moves in ((0.01, True), (30.0, False)):
        theta = (shift + ZERO).requires_grad_()
        loss = objective(bound="clamp", clamp=2.0)(Roles(theta), LabelledLatents(x, [False]))
        (found,) = torch.autograd.grad(loss.per_sample.sum(), theta, allow_unused=True)
        assert bool(found.norm() > 0) == moves
        if not moves:
            reference = float((loss.metrics["err_l"] - loss.metrics["gap_l"])[0])
            assert float(loss.per_sample[0]) == pytest.approx(-2 * reference)


def test_snpos_margin_is_bounded_and_its_slope_goes():
    """m = 0 and slope lam at the reference; at most -log(1 - lam), for every d."""
    d = torch.linspace(0, 500, 2001, dtype=torch.float64, requires_grad=True)
    ref = torch.full_like(d, 100.0)
    m = snpo_margin(d, ref, 0.9)
    direct = -(0.9 * (ref - d).exp() + 0.1).log()
    torch.testing.assert_close(m, direct, rtol=1e-9, atol=1e-9)
    assert float(m.max()) <= -math.log(0.1) + 1e-12 and float(m[-1]) == pytest.approx(-math.log(0.1))
    (slope,) = torch.autograd.grad(m.sum(), d)
    at_ref = int((d - 100).abs().argmin())
    assert float(m[at_ref]) == pytest.approx(0, abs=1e-12) and float(slope[at_ref]) == pytest.approx(0.9)
    assert float(slope[-1]) < 1e-12 and bool((slope >= 0).all())


@pytest.mark.parametrize("bound", BOUNDS)
def test_without_a_bound_500_steps_diverge_and_with_each_they_do_not(bound):
    """Good data around +0.5 and bad around -0.5 of one Gaussian: signed errors pull without end."""
    theta = ZERO.clone().requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        x = 0.1 * torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
        x += torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64).view(-1, 1, 1, 1)
        paired = bound == "guard"
        batch = PairedLatents(x[:2], x[2:], step) if paired else LabelledLatents(x, [True, True, False, False], step)
        loss = objective(bound=bound, beta=20.0)(Roles(theta), batch)
        optimiser.zero_grad()
        loss.per_sample.mean().backward()
        optimiser.step()
    reached = float(theta.detach().abs().max())
    if bound == "none":
        assert not reached < 20, "or not a number any more"
    else:
        assert 0.05 < reached < 5


def test_the_guard_never_raises_the_winners_error_to_first_order():
    """A bad image on the good one's side, farther out: pushing it away pushes the good one away too."""
    winner = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    rises = {}
    for bound in ("none", "guard"):
        theta = ZERO.clone().requires_grad_()
        method = objective(bound=bound, times={"law": "logit_normal", "mean": 3.0, "std": 0.1})
        loss = method(Roles(theta), PairedLatents(winner, 3 * winner))
        (gradient,) = torch.autograd.grad(loss.per_sample.sum(), theta)
        moved = method(Roles(-1e-4 * gradient), PairedLatents(winner, 3 * winner)).metrics["err_w"]
        rises[bound] = float((moved - loss.metrics["err_w"]) / 1e-4)
    assert rises["none"] > 1e-3 and rises["guard"] < 1e-3 * rises["none"]


def test_labels_train_the_tiny_model(tiny_sd_factory, tmp_path):
    policy = policy_on(tiny_sd_factory())
    batch = next(iter(labelled(policy, write_labels(tmp_path))))
    loss = objective(bound="clamp")(policy, batch)
    assert gradients(policy, loss).norm() > 1e-4 and len(loss.metrics["err_w"]) == sum(batch.good)


def test_what_cannot_work_is_refused():
    labels, pairs = LabelsConfig(labels="x"), PreferencesConfig(pairs="x")
    assert "guard weighs" in dict(DROConfig().conflicts({"data": labels}))[".bound"]
    assert not list(DROConfig().conflicts({"data": pairs}))
    assert "data" in dict(DROConfig().conflicts({"data": PromptsConfig(prompts=["a"])}))
    for said, config in ((True, {}), (False, {"unbounded": True})):
        found = dict(DROConfig(bound="none", **config).conflicts({"data": labels}))
        assert ("without a lower bound" in found.get(".bound", "")) == said

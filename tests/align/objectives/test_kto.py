"""Diffusion-KTO against its closed forms, on Gaussian data and on the tiny Stable Diffusion."""

import math
from types import SimpleNamespace

import pytest
import torch
from label_toys import SHAPE, LabelledLatents, PairedLatents, Roles, labelled, write_labels
from pair_toys import gradients, policy_on

from align.data.labels import LabelsConfig
from align.data.prompts import PromptsConfig
from align.objectives._base import Parts
from align.objectives._losses import utility_loss
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.objectives.kto import KTO, KTOConfig

GOOD = [True, False, False, True, True]
ZERO = torch.zeros(SHAPE, dtype=torch.float64)


def everything(rows):
    """The gathering of one process."""
    return rows


def objective(**config) -> KTO:
    return KTO(KTOConfig(**config), Parts(None, None, None, 0))


def latents(count: int = 5) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(theta, batch, **config):
    """(the objective's loss with its own Q, Q)."""
    method = objective(**config)
    context = method.before_update(Roles(theta), [batch], everything)
    return method(Roles(theta), batch, context), context


def test_at_the_reference_the_loss_is_a_half_and_its_gradient_w_beta_over_4():
    """d L/d err = +w beta/4 of each row, the scale of Diffusion-DPO's with the same beta."""
    beta, batch = 40.0, LabelledLatents(latents(), GOOD)
    theta = ZERO.clone().requires_grad_()
    loss, context = at(theta, batch, beta=beta)
    assert context.baseline == 0 and loss.per_sample.tolist() == [0.5] * 5
    method = objective(beta=beta)
    rows = method.noised(Roles(theta), batch)
    error = method.error(Roles(theta), "train", rows)
    for row, good in enumerate(GOOD):
        (found,) = torch.autograd.grad(loss.per_sample[row], theta, retain_graph=True)
        (slope,) = torch.autograd.grad(error[row], theta, retain_graph=True)
        torch.testing.assert_close(found, (1 if good else -1) * beta / 4 * slope, rtol=1e-9, atol=0)


def test_accuracy_counts_the_side_of_the_reference_however_near_it_is():
    rows = objective().noised(Roles(ZERO), LabelledLatents(latents(), GOOD))
    nearer = 1e-3 * rows.sign  # good ones below the reference's error, bad ones above
    reference = torch.ones(len(GOOD), dtype=torch.float64)
    for shift, expected in ((-nearer, 1.0), (nearer, 0.0), (0 * nearer, 0.5)):
        assert objective().said(rows, reference + shift, reference)["accuracy"].tolist() == [expected] * len(GOOD)


def test_the_baseline_has_no_gradient():
    """Through it, rows that are all good would have a mean gradient of 0 at the reference."""
    theta = ZERO.clone().requires_grad_()
    loss, _ = at(theta, LabelledLatents(latents(), [True] * 5), beta=40.0)
    (found,) = torch.autograd.grad(loss.per_sample.mean(), theta)
    assert found.norm() > 0.1


def test_the_gradient_of_each_row_is_weighted_by_the_utilitys_slope():
    """Away from the reference: w beta lambda U'(u) d err, u from the gap of this row and the mean of all."""
    beta, batch, theta = 3.0, LabelledLatents(latents(), GOOD), (0.4 + ZERO).requires_grad_()
    loss, context = at(theta, batch, beta=beta, good_weight=1.0, bad_weight=1.5, baseline_floor=False)
    method = objective(beta=beta)
    rows = method.noised(Roles(theta), batch)
    error, reference = (method.error(Roles(theta), role, rows) for role in ("train", "reference"))
    gap = -(error - reference).detach()
    assert context.baseline == pytest.approx(float(gap.mean()))
    assert context.pull == pytest.approx(float((beta * (gap - gap.mean())).abs().median()))
    for row, good in enumerate(GOOD):
        w, lam = (1, 1.0) if good else (-1, 1.5)
        s = float(torch.sigmoid(w * beta * (gap[row] - gap.mean())))
        assert float(loss.per_sample[row].detach()) == pytest.approx(lam * (1 - s))
        (found,) = torch.autograd.grad(loss.per_sample[row], theta, retain_graph=True)
        (slope,) = torch.autograd.grad(error[row], theta, retain_graph=True)
        torch.testing.assert_close(found, w * beta * lam * s * (1 - s) * slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("utility", ["kt", "risk_averse", "risk_seeking"])
def test_utilities_are_the_papers(utility):
    u = torch.tensor([-40.0, -1.0, 0.0, 2.0, 40.0], dtype=torch.float64, requires_grad=True)
    value = {
        "kt": torch.sigmoid,
        "risk_averse": lambda u: u.sigmoid().log(),
        "risk_seeking": lambda u: -(-u).sigmoid().log(),
    }
    losses = utility_loss(u, utility)
    torch.testing.assert_close(losses[1:4], (1.0 * (utility == "kt") - value[utility](u))[1:4])
    (slope,) = torch.autograd.grad(losses.sum(), u)
    assert float(slope[2]) == (-0.25 if utility == "kt" else -0.5)
    assert [float(slope[i]) == pytest.approx(0, abs=1e-9) for i in (0, 4)] == [
        utility != "risk_averse",
        utility != "risk_seeking",
    ]


def test_the_baseline_is_floored_where_the_released_code_floors_it_and_where_it_does_not():
    """A policy that is worse than the reference on all images has a negative mean gain."""
    batch, theta = LabelledLatents(latents(), GOOD), 3.0 + ZERO
    method = objective()
    rows = method.noised(Roles(theta), batch)
    gain, _ = method._gain(Roles(theta), rows)
    assert gain.mean() < -0.1
    balanced = (gain[rows.sign > 0].mean() + gain[rows.sign < 0].mean()) / 2
    for baseline, expected in (("batch", gain.mean()), ("balanced", balanced)):
        assert at(theta, batch, baseline=baseline)[1].baseline == 0
        assert at(theta, batch, baseline=baseline, baseline_floor=False)[1].baseline == pytest.approx(float(expected))
    assert at(theta, batch, baseline="none", baseline_floor=False)[1].baseline == 0
    assert abs(float(balanced - gain.mean())) > 1e-3


def test_the_papers_baseline_is_of_prompts_that_do_not_belong(tiny_sd_factory, tmp_path):
    policy = policy_on(tiny_sd_factory())
    batch = next(iter(labelled(policy, write_labels(tmp_path))))
    assert batch.others == batch.rows[1:] + batch.rows[:1]
    method = KTO(KTOConfig(baseline="mismatched", baseline_floor=False), Parts(policy.model, None, None, 0))
    found = method.before_update(policy, [batch[:3], batch[3:]], everything).baseline
    gains = []
    for row in range(4):
        rows = method.noised(policy, batch[row : row + 1])
        other = batch.source.rows[batch.rows[(row + 1) % 4]].prompt
        with torch.no_grad():
            gains.append(float(method._gain(policy, rows, policy.model.text.encode([other]))[0]))
    assert found == pytest.approx(sum(gains) / 4, rel=1e-4)
    plain = KTO(KTOConfig(baseline_floor=False), Parts(policy.model, None, None, 0))
    assert plain.before_update(policy, [batch], everything).baseline != pytest.approx(found, rel=1e-2)


def test_any_cut_of_an_update_has_one_baseline(tiny_sd_factory, tmp_path):
    policy = policy_on(tiny_sd_factory())
    batch = next(iter(labelled(policy, write_labels(tmp_path))))
    method = KTO(KTOConfig(beta=50.0), Parts(policy.model, None, None, 0))
    cuts = [method.before_update(policy, parts, everything) for parts in ([batch], [batch[:1], batch[1:]])]
    assert cuts[0][:2] == pytest.approx(cuts[1][:2], rel=1e-4) and cuts[0].reference.keys() == set(batch.indices)
    whole, parts = method(policy, batch, cuts[0]), [method(policy, batch[i : i + 1], cuts[0]) for i in range(4)]
    torch.testing.assert_close(whole.per_sample, torch.cat([p.per_sample for p in parts]), rtol=1e-4, atol=1e-5)


def test_the_reference_is_run_once_an_update(tiny_sd_factory, tmp_path):
    """Its errors are those that the average was made of, and the loss is the same to the last bit."""
    policy = policy_on(tiny_sd_factory())
    batch = next(iter(labelled(policy, write_labels(tmp_path))))
    method = KTO(KTOConfig(beta=50.0), Parts(policy.model, None, None, 0))
    context = method.before_update(policy, [batch], everything)
    before = policy.calls.forward
    once = method(policy, batch, context)
    assert policy.calls.forward - before == len(batch)
    again = method(policy, batch, context._replace(reference={}))
    assert policy.calls.forward - before == 3 * len(batch) and torch.equal(once.per_sample, again.per_sample)


def test_a_fresh_adapter_starts_at_a_half_with_a_gradient(tiny_sd_factory, tmp_path):
    policy = policy_on(tiny_sd_factory(), b_scale=0)
    loss = objective()(policy, next(iter(labelled(policy, write_labels(tmp_path)))))
    assert loss.per_sample.tolist() == [0.5] * 4 and loss.metrics["accuracy"].tolist() == [0.5] * 4
    assert gradients(policy, loss).norm() > 1e-4


def test_good_images_pull_and_bad_ones_push():
    """Good data around +1/2, bad around -1/2: the mean moves to the good side, and no further than the utility is."""
    theta = ZERO.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.05)
    x = 0.2 * latents(16)
    good = [i % 2 == 0 for i in range(16)]
    x += torch.tensor([0.5 if g else -0.5 for g in good], dtype=torch.float64).view(-1, 1, 1, 1)
    for step in range(60):
        loss, _ = at(theta, LabelledLatents(x, good, step), beta=4.0)
        optimiser.zero_grad()
        loss.per_sample.mean().backward()
        optimiser.step()
    assert 0.2 < float(theta.detach().mean()) < 3 and math.isfinite(float(theta.detach().abs().max()))


def test_a_dpo_of_the_same_beta_has_gradients_of_the_same_size():
    """At the reference both are beta/4 times an error's."""
    x, theta = latents(2), ZERO.clone().requires_grad_()
    dpo = DiffusionDPO(DiffusionDPOConfig(beta=40.0), Parts(SimpleNamespace(latent_shape=lambda: SHAPE), None, None, 0))
    loss = dpo(Roles(theta), PairedLatents(x[:1], x[1:]))
    (pair,) = torch.autograd.grad(loss.per_sample.sum(), theta)
    both = torch.zeros_like(pair)
    for image, good in ((x[:1], True), (x[1:], False)):  # index 0 has the pair's t and eps
        loss, _ = at(theta, LabelledLatents(image, [good]), beta=40.0)
        both += torch.autograd.grad(loss.per_sample.sum(), theta)[0]
    torch.testing.assert_close(both, pair, rtol=1e-9, atol=1e-12)


def test_what_cannot_work_is_refused():
    assert dict(KTOConfig().conflicts({"data": PromptsConfig(prompts=["a"])})).keys() == {"data"}
    assert not list(KTOConfig().conflicts({"data": LabelsConfig(labels="x")}))

"""SPO: rollouts that branch, pairs that are judged, and the loss on them, on the tiny Stable Diffusion."""

import json
import math
from dataclasses import replace

import pytest
import torch
from pair_toys import gradients, policy_on, workplace

from align.data._branch import branch
from align.data.prompts import PromptBatch, PromptsConfig
from align.data.rollouts import Rollouts, RolloutsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._losses import clamped, dpo
from align.objectives.spo import SPO, SPOConfig
from align.sampling import SamplingConfig
from align.training.checkpoint import decode, encode
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig
from samplers import Grid, Rng, ddim, split

SAMPLING = SamplingConfig(num_steps=4, guidance_scale=2.0, eta=1.0)
PROMPTS = ["a cat", "two", "x", "abc"]


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


@pytest.fixture
def fresh(tiny_sd_factory):
    return policy_on(tiny_sd_factory(), b_scale=0)


def around(policy):
    return workplace(policy, sampling=SAMPLING, rewards=Composite({"brightness": Brightness(BrightnessConfig())}))


def rollouts(policy, *, batch_size=6, **config) -> Rollouts:
    settings = {"prompts": PROMPTS, "num_prompts": 3, "num_candidates": 3, "first_step": 1, "gap": 0.0}
    source = Rollouts(RolloutsConfig(**settings | config), batch_size=batch_size, seed=0)
    source.prepare(around(policy))
    return source


def objective(policy, **config) -> SPO:
    return SPO(SPOConfig(**config), Parts(policy.model, SAMPLING, None, 0))


def test_the_attainable_argument_is_2_007_and_the_least_loss_0_126():
    """At beta 10 and c 0.1: 10 log(1.1/0.9), and log(1 + e^-2.007)."""
    low, high = clamped(torch.tensor([-9.0, 9.0], dtype=torch.float64), SPOConfig().clamp)
    assert (low.exp().item(), high.exp().item()) == pytest.approx((0.9, 1.1))
    assert 10 * float(high - low) == pytest.approx(2.007, abs=1e-3)
    assert float(dpo(high[None], low[None], beta=10.0)) == pytest.approx(0.126, abs=1e-3)
    assert float(clamped(torch.tensor([9.0]), None)) == 9.0


def test_on_a_fresh_adapter_the_ratio_is_exactly_1(fresh):
    loss = objective(fresh)(fresh, next(iter(rollouts(fresh))))
    for side in "wl":
        assert torch.equal(loss.metrics[f"log_ratio_{side}"], torch.zeros(6))
        assert torch.equal(loss.metrics[f"clamped_{side}"], torch.zeros(6))
    assert torch.equal(loss.per_sample, torch.full((6,), math.log(2)))
    assert loss.metrics["accuracy"].tolist() == [0.5] * 6
    assert gradients(fresh, loss).norm() > 1e-4


def test_candidates_are_draws_of_the_policys_own_transition(policy):
    """(x_w - mean)/std is one of the noises drawn at that step, and the winner's image is the brighter one."""
    source = rollouts(policy, batch_size=9)
    batch = next(iter(source))
    rows, model = batch.rows, policy.model
    denoiser = SAMPLING.guided(policy.role("train"), model.text.encode([""]))
    cond, grid = model.text.encode(batch.prompts), SAMPLING.grid(model)
    alphas, sigmas = denoiser.schedule(grid.times)
    noises = []
    with torch.no_grad():
        for i in range(9):
            number = int((grid.times - rows.t[i]).abs().argmin())
            x_t, one = rows.x_t[i : i + 1], cond[i : i + 1]
            x0, eps = split(denoiser(x_t, grid.times[number], one), x_t, alphas[number], sigmas[number], denoiser.kind)
            levels = alphas[number], sigmas[number], alphas[number + 1], sigmas[number + 1]
            step = ddim(x0, eps, *levels, eta=1.0)
            rng = Rng(0, [batch.indices[i]])
            drawn = torch.cat([rng.normal(f"candidate/{number}/{j}", x_t) for j in range(3)])
            found = [int(((x[i] - step.mean) / step.std - drawn).abs().flatten(1).amax(1).argmin()) for x in rows[1:3]]
            noises.append(found)
            for x, j in zip(rows[1:3], found, strict=True):
                torch.testing.assert_close((x[i] - step.mean[0]) / step.std, drawn[j], rtol=0, atol=2e-3)
            shown = []
            for x in (rows.x_w[i : i + 1], rows.x_l[i : i + 1]):
                last = number == 3
                out = (
                    x
                    if last
                    else split(denoiser(x, rows.s[i], one), x, *denoiser.schedule(rows.s[i]), denoiser.kind)[0]
                )
                shown.append(float(Brightness(BrightnessConfig())(model.codec.decode(out), batch.prompts[i : i + 1])))
            assert shown[0] > shown[1] - 5e-7, "apart by 2e-5 and more"
    assert all(w != loser for w, loser in noises) and len({w for w, _ in noises}) > 1
    assert sorted(rows.t.unique().tolist(), reverse=True) == grid.times[1:4].tolist(), "from first_step on"


def test_a_rollout_goes_on_from_a_candidate_drawn_uniformly(policy):
    """Over many samples, each of 3 candidates is continued from as often as the others, whatever the judge says."""
    settings = RolloutsConfig(prompts=PROMPTS, num_candidates=3, first_step=0, gap=0.0)
    batch = PromptBatch(("a cat",) * 60, tuple(range(60)), 0)
    place = around(policy)
    rows = branch(settings, place, lambda images, prompts, t: torch.arange(len(images)).float() % 3, batch)
    first = rows.at(rows.t == rows.t.max())
    second = rows.at((rows.t - first.s[0]).abs() < 1e-9)
    # with this judge candidate 2 always wins and candidate 0 always loses
    went_on = [
        0 if torch.equal(x, low) else 2 if torch.equal(x, high) else 1
        for x, low, high in zip(second.x_t, first.x_l, first.x_w, strict=True)
    ]
    counts = torch.bincount(torch.tensor(went_on), minlength=3)
    assert counts.min() >= 10


def test_pairs_without_a_difference_have_weight_0(policy):
    """p_best - p_worst > gap of the softmax over the two; the temperature scales a reward into logits."""
    batches = {gap: next(iter(rollouts(policy, batch_size=9, gap=gap, temperature=6e-5))) for gap in (0.0, 0.3)}
    kept = {gap: int(batch.rows.kept.sum()) for gap, batch in batches.items()}
    assert kept[0.0] == 9 > kept[0.3] > 0
    batch, method = batches[0.3], objective(policy, clamp=None)
    loss = method(policy, batch)
    assert torch.equal(loss.weight, batch.rows.kept)
    only = [i for i in range(9) if batch.rows.kept[i]]
    alone = torch.cat([method(policy, batch[i : i + 1]).per_sample for i in only])
    torch.testing.assert_close(loss.per_sample[only], alone, rtol=1e-4, atol=1e-5)
    assert bool((loss.per_sample[loss.weight == 0] == 0).all())
    empty = replace(batch, rows=batch.rows._replace(kept=torch.zeros(9)))
    nothing = method(policy, empty)
    assert nothing.weight.sum() == 0 and bool((gradients(policy, nothing) == 0).all())


def test_outside_the_band_there_is_no_gradient(tiny_sd_factory):
    policy = policy_on(tiny_sd_factory(), b_scale=1.0)
    batch = next(iter(rollouts(policy, batch_size=9)))
    loss = objective(policy)(policy, batch)
    both = (loss.metrics["clamped_w"] + loss.metrics["clamped_l"]) == 2
    assert both.any()
    for i in range(9):
        norm = gradients(policy, objective(policy)(policy, batch[i : i + 1])).norm()
        assert (norm == 0) == bool(both[i])


def test_a_source_goes_on_within_a_rollout_and_across_its_border(policy):
    """9 transitions a rollout, 4 an update: after 2 of 3 updates, and after 3."""
    stream = iter(rollouts(policy, batch_size=4))
    whole = [next(stream) for _ in range(5)]
    assert [len(batch) for batch in whole] == [4, 4, 1, 4, 4]
    assert len({i for batch in whole[:3] for i in batch.indices}) == 3 and set(whole[3].indices) <= {3, 4, 5}
    for done in (2, 3):
        first = iter(started := rollouts(policy, batch_size=4))
        for _ in range(done):
            next(first)
        tensors = {}
        plain = json.loads(json.dumps(encode(started.state_dict(), tensors, "")))
        assert bool(tensors) == (done == 2), "what is left of a rollout is kept, and nothing once it is served"
        taken_up = rollouts(policy, batch_size=4)
        taken_up.load_state_dict(decode(plain, tensors))
        rest = iter(taken_up)
        for expected in whole[done:]:
            batch = next(rest)
            assert (batch.prompts, batch.indices, batch.step) == (expected.prompts, expected.indices, expected.step)
            assert all(torch.equal(a, b) for a, b in zip(batch.rows, expected.rows, strict=True))


def test_what_cannot_work_is_refused():
    found = dict(RolloutsConfig(prompts=["a"], first_step=4).conflicts({"sampling": SamplingConfig(num_steps=4)}))
    assert set(found) == {"sampling.eta", ".first_step", ".spm"}
    assert not list(RolloutsConfig(prompts=["a"], first_step=3).conflicts({"sampling": SAMPLING, "rewards": {"a": 1}}))
    ((key, text),) = SPOConfig().conflicts({"data": PromptsConfig(prompts=["a"])})
    assert key == "data" and "sampling steps" in text


def test_a_rollout_whose_branched_steps_have_no_noise_is_refused(policy, monkeypatch):
    """A grid that ends at the image takes its last step without noise."""
    with pytest.raises(UserError, match=r"data.first_step=3: of the 4 steps none from there on has noise"):
        ended_at(policy, monkeypatch, 3)
    assert next(iter(ended_at(policy, monkeypatch, 2))).rows.t.unique().numel() == 1


def ended_at(policy, monkeypatch, first_step):
    grid = SAMPLING.grid(policy.model)
    exact = Grid(torch.cat([grid.times[:-1], torch.zeros(1, dtype=torch.float64)]), grid.init_scale)
    monkeypatch.setattr(policy.model, "grids", lambda *_: exact)
    return rollouts(policy, first_step=first_step)


def test_a_gap_that_no_pair_passes_is_named(policy):
    source = rollouts(policy, gap=0.99)
    batch = next(iter(source))
    assert not batch.rows.kept.any() and float(batch.rows.gap.max()) > 0
    assert "data.gap=0.99" in source.why_empty and f"was {source._widest:.3g})" in source.why_empty

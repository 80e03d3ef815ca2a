"""ReFL: one prediction at a random late step carries the gradient; at the last step it is DRaFT-1; denoising."""

from collections import Counter

import pytest
import torch
from bundle_toys import BATCH, SEED, N, Network, at, build, steps, through_input
from scipy.stats import chisquare

from align.data.captioned import CaptionedConfig
from align.data.prompts import PromptsConfig
from align.objectives.draft import Draft
from align.objectives.drtune import DRTune
from align.objectives.refl import ReFL, ReFLConfig
from align.sampling import SamplingConfig
from samplers import FlowSchedule, Rng, add_noise, generator, grids

PLAIN = {"margin": None, "scale": 1.0}


def test_the_gradient_comes_through_one_late_step_and_no_step_is_taken_after_it():
    seen = set()
    for update in range(8):
        network, objective = Network(), build(ReFL, PLAIN)
        loss = objective(network, at(update))
        m = int(loss.metrics["step_read"])
        assert steps(network, loss.per_sample) == [i == m for i in range(N)]
        assert through_input(network, loss.per_sample) == [False] * N
        assert sorted(network.inputs) == list(range(m + 1))
        seen.add(m)
    assert seen == {6, 7}, "the last quarter of 8 steps"


def test_at_the_last_step_it_is_draft_1_where_sigma_s_is_zero():
    found = {}
    for kind, config in ((Draft, {}), (ReFL, {**PLAIN, "first": N - 1})):
        network = Network()
        loss = build(kind, config, last_k=1)(network, BATCH)
        found[kind] = loss.per_sample, torch.autograd.grad(loss.per_sample.sum(), network.theta)[0]
    for mine, theirs in zip(found[ReFL], found[Draft], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    assert float(found[ReFL][1].abs().max()) > 0


def test_an_earlier_prediction_is_another_image():
    early, late = (build(ReFL, {**PLAIN, "first": m, "last": m}) for m in (5, 7))
    rewards = [objective(Network(), BATCH).metrics["reward/total"] for objective in (early, late)]
    assert float((rewards[0] - rewards[1]).abs().min()) > 1e-6


def test_m_is_uniform_on_its_range_and_the_batch_shares_it():
    objective = build(ReFL, {**PLAIN, "first": 3, "last": 6})
    network = Network()
    with torch.no_grad():
        read = [int(objective(network, at(u)[:1]).metrics["step_read"]) for u in range(400)]
    counts = Counter(read)
    assert sorted(counts) == [3, 4, 5, 6] and chisquare([counts[m] for m in (3, 4, 5, 6)]).pvalue > 1e-3
    again = objective(Network(), at(17)[1:]).metrics["step_read"]
    assert int(again) == read[17], "it depends on the seed and the update only"


def test_the_published_loss():
    reward = build(ReFL)(Network(), BATCH).metrics["reward/total"]
    middle = float(reward.median())
    loss = build(ReFL, {"margin": middle, "scale": 0.25})(Network(), BATCH).per_sample
    torch.testing.assert_close(loss.detach(), 0.25 * (middle - reward).clamp(min=0))
    assert (ReFLConfig().margin, ReFLConfig().scale) == (2.0, 1e-3)
    assert ReFLConfig().steps(40) == (30, 39)


class Pictured:
    """BATCH with pictures."""

    prompts, indices, step = BATCH.prompts, BATCH.indices, BATCH.step

    def images(self):
        return torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_the_denoising_term_is_the_error_on_the_networks_own_target():
    network = Network()
    objective = build(ReFL, {**PLAIN, "pretraining": 0.5})
    loss = objective(network, Pictured())
    plain = build(ReFL, PLAIN)(Network(), BATCH)
    rng, posterior = Rng(SEED, BATCH.indices, BATCH.step), objective.model.codec.encode(Pictured().images())
    x0 = posterior.mean + torch.exp(torch.tensor(-1.5)) * rng.normal("posterior", posterior.mean)
    noise = rng.normal("denoising", x0)
    t = torch.cat([torch.rand(1, generator=generator(SEED, "denoising/t", i)) for i in BATCH.indices])
    x_t = add_noise(FlowSchedule(), x0, noise, t.double())
    cond = objective.model.text.encode(BATCH.prompts).tensors["mean"]
    error = (0.7 * x_t.square() / 4 + cond - (noise - x0)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.metrics["denoising"], error, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.per_sample.detach(), plain.per_sample.detach() + 0.5 * error, rtol=1e-6, atol=0)
    assert steps(network, loss.per_sample)[0], "its gradient reaches the network too"


def test_settings_that_cannot_work():
    sampling = SamplingConfig(num_steps=8)
    ((key, text),) = ReFLConfig(first=6, last=8).conflicts({"sampling": sampling})
    assert key == ".last" and "0..7" in text
    ((key, _),) = ReFLConfig(first=5, last=4).conflicts({"sampling": sampling})
    assert key == ".last"
    data = PromptsConfig(prompts=["a"])
    ((key, text),) = ReFLConfig(pretraining=0.1).conflicts({"sampling": sampling, "data": data})
    assert key == ".pretraining" and "data.name=prompts" in text
    fine = {"sampling": sampling, "data": CaptionedConfig(folder="x")}
    assert not list(ReFLConfig(pretraining=0.1).conflicts(fine))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_have_a_range_too(num_steps):
    first, last = ReFLConfig().steps(num_steps)
    assert 0 <= first <= last == num_steps - 1


@pytest.mark.parametrize("kind", [ReFL, DRTune])
def test_heun_reads_the_step_that_was_drawn(kind):
    """Its 2 N - 1 calls are two a step: the prediction of step m is call 2 m, made at the time of step m."""
    config = {**PLAIN, "first": 6, "last": 6} if kind is ReFL else {"early_stop": 0.25}
    objective = build(kind, config, step_rule="heun", subset_k=2, guidance_scale=1.0)
    objective.model.grids = lambda n, *_: grids.doubled(grids.flow(n))
    called: list[float] = []

    class Noting(Network):
        def __call__(self, x_t, t, cond):
            called.append(float(t))
            return super().__call__(x_t, t, cond)

    for update in range(6):
        called.clear()
        loss = objective(Noting(), at(update))
        m = int(loss.metrics["step_read"])
        assert len(called) == 2 * m + 1 and called[-1] == pytest.approx(float(grids.flow(N).times[m]))

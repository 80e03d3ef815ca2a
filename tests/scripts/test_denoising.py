"""The two capable models beside each other, and each in place of the other."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from align.shapes.captions import Requirement, parse
from align.shapes.compose import compose
from align.shapes.scene import render_batch
from scripts.pretrain import denoising, flow, sd, text


@pytest.fixture
def exact(monkeypatch):
    """Models that know that latents have unit variance: x^ = (1 - t) / (t^2 + (1 - t)^2) x_t; the base tells its own
    time by the table of its schedule."""
    signal = sd.scheduler().alphas_cumprod

    def unet(x, step, _):
        low = int(step[0])
        share = float(step[0]) - low
        before, after = (((1 - signal[k]) / signal[k]).log() / 2 for k in (low, min(low + 1, 999)))
        ratio = torch.lerp(before, after, share).exp()
        return SimpleNamespace(sample=x * ratio / (1 + ratio**2).sqrt())

    def velocity(_, x, t, *__):
        return x * ((2 * t - 1) / (t * t + (1 - t) ** 2))[:, None, None, None]

    pipe = SimpleNamespace(
        unet=unet, text_encoder=lambda ids: SimpleNamespace(last_hidden_state=None), transformer=None
    )
    pipe.to = lambda device: pipe
    for stage in (sd, flow):
        monkeypatch.setattr(stage, "load", lambda: pipe)
    monkeypatch.setattr(flow, "encode", lambda *_: (None, None, None))
    monkeypatch.setattr(flow, "velocity", velocity)
    decoder = SimpleNamespace(decode=lambda z: SimpleNamespace(sample=z[:, :3] / 8), config={"scaling_factor": 1.0})
    monkeypatch.setattr(denoising.vae, "load", lambda: SimpleNamespace(to=lambda _: decoder))
    monkeypatch.setattr(text, "tokens", lambda captions: torch.zeros(len(captions), 3, dtype=torch.long))
    return denoising.Models()


def test_both_models_are_one_velocity_at_equal_noise(exact):
    x, ids = torch.randn(3, 4, 8, 8), torch.zeros(3, 3, dtype=torch.long)
    for t in (0.05, 0.3, 0.5, 0.8, 0.92):
        base, rectified = (exact.velocity(name, x, t, ids) for name in ("sd", "flow"))
        torch.testing.assert_close(base, rectified, atol=2e-4, rtol=2e-4)


def test_denoising_is_compared_at_equal_noise(exact, monkeypatch):
    """Of latents of unit variance, the error of either is t^2 / (t^2 + (1 - t)^2), whatever lies under a cell."""
    g = torch.Generator().manual_seed(0)
    latents, ids = torch.randn(480, 4, 8, 8, generator=g), torch.zeros(480, 3, dtype=torch.long)
    labels = torch.zeros(480, 64, 2, dtype=torch.long)
    labels[:, 27] = 1
    monkeypatch.setattr(denoising, "Pool", lambda *_, **__: SimpleNamespace(batch=lambda *_: (latents, ids, labels)))
    for t, _, found in denoising.errors(exact, 480):
        assert found == pytest.approx(dict.fromkeys(found, t * t / (t * t + (1 - t) ** 2)), rel=0.08)


def test_cells_are_an_objects_beside_one_or_neither():
    labels = torch.zeros(1, 64, 2, dtype=torch.long)
    labels[0, 0] = torch.tensor([2, 5])
    labels[0, 9] = 1
    kinds = denoising.kinds(labels)
    assert kinds.sum(0).eq(1).all()
    assert kinds.sum((1, 2, 3)).tolist() == [2, 7, 55]
    assert kinds[:, 0, 0, 1].tolist() == [0, 1, 0]


def test_one_model_takes_over_from_the_other_at_the_time_asked(exact, monkeypatch):
    """What is drawn by exact models does not depend on which of them draws; and each is asked at its own times."""
    asked = []
    guided = exact.guided
    monkeypatch.setattr(exact, "guided", lambda name, x, t, *rest: asked.append((name, t)) or guided(name, x, t, *rest))
    monkeypatch.setattr(denoising, "PART", 1)
    both = [denoising.drawn(exact, lambda t, n=n: n if t > 0.5 else "sd", ["a", "b"]) for n in ("sd", "flow")]
    torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
    second = asked[len(asked) // 2 :]
    assert all(name == ("flow" if t > 0.5 else "sd") for name, t in second)
    assert all(name == "flow" for name, t in asked if t > denoising.NOISIEST)
    assert {name for name, t in asked[:20] if t <= denoising.NOISIEST} == {"sd"}


def test_fresh_noise_follows_each_prediction(exact):
    """x_s = (1 - s) x^ + s e, of exact models of unit variance: var_s = (1 - s)^2 c_t^2 var_t + s^2."""
    pictures = denoising.drawn(exact, lambda t: "flow", ["a"] * 240, fresh=True)
    expected, times = 1.0, [*torch.linspace(1, 1e-3, denoising.STEPS).tolist(), 0.0]
    for t, s in pairwise(times):
        expected = ((1 - s) * (1 - t) / (t * t + (1 - t) ** 2)) ** 2 * expected + s * s
    assert (pictures * 2 - 1).mul(8).var().item() == pytest.approx(expected, rel=0.02)
    assert (expected - 1) ** 2 > 0.04**2  # the ODE keeps the variance of 1


def test_fresh_noise_is_that_of_the_stock_scheduler(monkeypatch):
    """One step of `flow.stochastic`'s scheduler from x_t with velocity v: (1 - s) (x_t - t v) + s e."""
    monkeypatch.setattr(flow, "StableDiffusion3Pipeline", SimpleNamespace)
    monkeypatch.setattr(flow, "ready", lambda pipe: pipe)
    bare = SimpleNamespace(components={}, scheduler=FlowMatchEulerDiscreteScheduler())
    scheduler = flow.stochastic(bare).scheduler
    scheduler.set_timesteps(4)
    x, v = torch.randn(2, 3, 4, 8, 8)
    t, s = scheduler.sigmas[:2]
    out = scheduler.step(v, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(0)).prev_sample
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, (1 - s) * (x - t * v) + s * e)


def test_mistakes_are_told_apart(monkeypatch):
    """Pictures that show the first shape twice, and right ones."""

    def drawn(models, who, captions, *, fresh):
        items = [parse(c).items for c in captions]
        wanted = [Requirement((a, b) if fresh else (a, replace(a, size=None))) for a, b in items]
        rng = np.random.default_rng(0)
        return render_batch([compose(r, rng) for r in wanted])

    monkeypatch.setattr(denoising, "drawn", drawn)
    found = list(denoising.mistakes(None, 1))
    assert [row[:2] for row in found] == [(n, how) for n in ("sd", "flow") for how in ("ODE", "fresh noise")]
    assert [row[2:] for row in found] == [(0.0, 1.0), (1.0, 0.0)] * 2

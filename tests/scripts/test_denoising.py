"""The two capable models beside each other, and each in place of the other."""

from types import SimpleNamespace

import pytest
import torch

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
    decoder = SimpleNamespace(decode=lambda z: SimpleNamespace(sample=z[:, :3]), config={"scaling_factor": 1.0})
    monkeypatch.setattr(denoising.vae, "load", lambda: SimpleNamespace(to=lambda _: decoder))
    monkeypatch.setattr(text, "tokens", lambda captions: torch.zeros(len(captions), 3, dtype=torch.long))
    both = [denoising.drawn(exact, lambda t, n=n: n if t > 0.5 else "sd", ["a", "b"]) for n in ("sd", "flow")]
    torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
    second = asked[len(asked) // 2 :]
    assert all(name == ("flow" if t > 0.5 else "sd") for name, t in second)
    assert all(name == "flow" for name, t in asked if t > denoising.NOISIEST)
    assert {name for name, t in asked[:20] if t <= denoising.NOISIEST} == {"sd"}

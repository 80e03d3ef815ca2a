"""The step-aware preference model: a CLIP at the start, and a judge that learns which images are liked."""

import math

import pytest
import torch
from pair_toys import policy_on, prepared, write_pairs

from align.models._step_aware import StepAwareClip
from align.objectives._base import Parts
from align.objectives.spm import SPM, SPMConfig
from align.registry import resolve_embedded
from align.sampling import SamplingConfig
from rewards.clip import Clip, ClipConfig

SOURCE = resolve_embedded("embedded:shapes-clip")
PROMPTS = ["a small circle", "a red star", "a square"]


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def test_at_the_start_it_is_its_clip_at_every_time(images):
    clip = Clip(ClipConfig(model=SOURCE, form="logit"))
    model = StepAwareClip(SOURCE)
    expected = clip(images, PROMPTS)
    for t in (0.0, 0.3, 1.0):
        assert torch.equal(model(images, PROMPTS, torch.full((3,), t)), expected)


def test_a_moved_modulation_reads_the_time_of_each_row_and_survives_the_disk(images, tmp_path):
    model = StepAwareClip(SOURCE)
    with torch.no_grad():
        for modulation in model.modulations:
            modulation.linear.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        model.clip.network.visual_projection.weight.mul_(1.1)
    t = torch.tensor([0.1, 0.5, 0.9])
    scores = model(images, PROMPTS, t).detach()
    early = model(images, PROMPTS, torch.full((3,), 0.1)).detach()
    assert scores[0] == pytest.approx(float(early[0]), rel=1e-5)
    assert (scores[1:] - early[1:]).abs().min() > 1e-3
    model.save(tmp_path)
    again = StepAwareClip.load(tmp_path)
    torch.testing.assert_close(again(images, PROMPTS, t).detach(), scores, rtol=1e-6, atol=1e-6)


def test_it_starts_alike_on_every_process():
    torch.manual_seed(1)
    first = StepAwareClip(SOURCE, seed=3)
    torch.manual_seed(2)
    second = StepAwareClip(SOURCE, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_text_tower_is_not_trained():
    model = StepAwareClip(SOURCE)
    trained = {id(p) for p in model.trained()}
    assert not any(id(p) in trained for p in model.clip.network.text_model.parameters())
    assert {id(p) for p in model.modulations.parameters()} <= trained


def objective(policy, **config) -> SPM:
    return SPM(SPMConfig(clip=SOURCE, **config), Parts(policy.model, SamplingConfig(guidance_scale=2.0), None, 0))


def test_an_identical_pair_says_nothing(policy, tmp_path):
    batch = next(iter(prepared(policy, write_pairs(tmp_path, identical=True))))
    method = objective(policy)
    loss = method(policy, batch)
    torch.testing.assert_close(loss.per_sample, torch.full((4,), math.log(2)), rtol=1e-4, atol=0)
    assert loss.metrics["accuracy"].shape == (4,) and method.trainable.state_dict()


def test_ties_pull_the_two_scores_together(policy, tmp_path):
    """The tie's loss is least at equal scores; ties have no part in the accuracy."""
    write_pairs(tmp_path / "ties", tie=True)
    batch = next(iter(prepared(policy, tmp_path / "ties", ties="keep")))
    method = objective(policy, clean=1.0)
    loss = method(policy, batch)
    decided = next(iter(prepared(policy, write_pairs(tmp_path / "decided"))))
    margin = method(policy, decided).metrics["margin"]
    torch.testing.assert_close(loss.per_sample.float(), (torch.nn.functional.softplus(margin) - margin / 2).float())
    assert len(loss.metrics["accuracy"]) == 0 and margin.abs().max() > 0.01


def test_it_learns_to_order_the_pairs_it_sees(policy, tmp_path):
    batch = next(iter(prepared(policy, write_pairs(tmp_path))))
    method = objective(policy, clean=0.5)
    optimiser = torch.optim.AdamW(method.trainable.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = method(policy, batch)
        loss.per_sample.mean().backward()
        optimiser.step()
        losses.append(float(loss.per_sample.mean()))
    assert losses[-1] < 0.3 < losses[0]
    assert float(loss.metrics["accuracy"].mean()) == 1
    assert all(p.grad is None for p in policy.adapter.parameters()), "nothing of the diffusion model is trained"

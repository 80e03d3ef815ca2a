"""What the reward objectives share: the normalisation follows the scores of whole updates, however they are cut."""

from types import SimpleNamespace

import pytest
import torch
from bundle_toys import BATCH, SEED, SHAPE, Bundle, N, Network, at

from align.objectives._base import Parts
from align.objectives.draft import Draft, DraftConfig
from align.sampling import SamplingConfig
from rewards import CombineConfig, Composite
from rewards.brightness import Brightness, BrightnessConfig


def draft(how: str = "running", num_noises: int = 0) -> Draft:
    rewards = Composite(
        {"a": Brightness(BrightnessConfig()), "b": Brightness(BrightnessConfig(weight=2.0))},
        CombineConfig(normalise=how, decay=0.5),  # type: ignore[arg-type]
    )
    block = SamplingConfig(num_steps=N, guidance_scale=1.0, checkpoint_steps=False)
    return Draft(DraftConfig(num_noises=num_noises), Parts(Bundle(), block, rewards, SEED))


def same(rows: torch.Tensor) -> torch.Tensor:
    return rows


def play(objective: Draft, *cuts, gather=same) -> list[torch.Tensor]:
    """One update over these micro-batches: the totals that were trained on."""
    objective.before_update(Network(), cuts, gather)
    totals = [objective(Network(), batch).metrics["reward/total"] for batch in cuts]
    objective.after_update(gather)
    return totals


def test_the_first_totals_are_standardised_by_their_own_update():
    (total,) = play(draft(), BATCH)
    each = total / 3  # weights 1 and 2 of the same reward
    assert float(each.mean()) == pytest.approx(0, abs=1e-9)
    assert float(each.std(correction=0)) == pytest.approx(1, abs=1e-9)


def test_the_statistics_and_totals_do_not_depend_on_the_cut():
    whole, cut = draft(), draft()
    for update in (2, 3):
        batch = at(update)
        (total,) = play(whole, batch)
        parts = play(cut, batch[:1], batch[1:])
        torch.testing.assert_close(torch.cat(parts), total, rtol=1e-9, atol=1e-9)
    for label in ("a", "b"):
        assert whole.rewards.normaliser.scale(label) == pytest.approx(cut.rewards.normaliser.scale(label), rel=1e-9)


def test_a_process_without_rows_follows_the_others():
    one = draft()
    seen: list[torch.Tensor] = []

    def listen(rows):
        seen.append(rows)
        return rows

    play(one, BATCH, gather=listen)
    alone = draft()
    answers = iter(seen)
    play(alone, gather=lambda rows: torch.cat([next(answers), rows]))
    assert alone.state_dict() == one.state_dict() and alone.state_dict()["moments"]


def test_fixed_statistics_stay_running_ones_follow_and_none_are_not_gathered():
    for how, stays in (("fixed", True), ("running", False)):
        objective = draft(how)
        play(objective, BATCH)
        before = objective.state_dict()
        play(objective, at(7)[1:])
        assert (objective.state_dict() == before) == stays
    plain = draft("none")
    play(plain, BATCH, gather=lambda rows: pytest.fail("nothing is to be sent"))
    assert plain.state_dict() == {}


def test_the_state_survives_a_checkpoint():
    first, second = draft(), draft()
    play(first, BATCH)
    second.load_state_dict(first.state_dict())
    assert torch.equal(play(first, at(5))[0], play(second, at(5))[0])


def test_scores_of_further_noisings_are_not_observed():
    with_noises, without = draft(num_noises=2), draft()
    play(with_noises, BATCH)
    play(without, BATCH)
    assert with_noises.state_dict() == without.state_dict()


def at_the_latents(max_sample_grad: float | None, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """(losses, the gradient of their mean, metrics) for r = |x|^2, which is as steep as x is long: d r/d x = 2 x."""

    def score(pixels, prompts):
        total = pixels.square().flatten(1).sum(1)
        return {"a": total.detach()}, total, {}

    rewards = SimpleNamespace(score=score)
    objective = Draft(DraftConfig(max_sample_grad=max_sample_grad), Parts(Bundle(), SamplingConfig(), rewards, SEED))  # type: ignore[arg-type]
    x0 = latents.clone().requires_grad_()
    losses, metrics = objective.losses(x0, ["a"] * len(x0))
    losses.mean().backward()
    assert x0.grad is not None
    return losses.detach(), x0.grad, metrics


def test_only_samples_steeper_than_the_bound_are_scaled_down_and_each_by_itself():
    lengths = torch.tensor([0.5, 2.0, 40.0], dtype=torch.float64)
    latents = torch.randn(3, *SHAPE, dtype=torch.float64)
    latents = latents * (lengths / latents.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    free, gradient, said = at_the_latents(None, latents)
    assert "sample_grad" not in said
    loose, same_gradient, _ = at_the_latents(1e3, latents)
    torch.testing.assert_close(same_gradient, gradient)
    losses, bounded, metrics = at_the_latents(3.0, latents)
    assert torch.equal(losses, free) and torch.equal(loose, free), "what is reported stays the loss"
    torch.testing.assert_close(metrics["sample_grad"], 2 * lengths)
    torch.testing.assert_close(3 * bounded.flatten(1).norm(dim=1), torch.tensor([1.0, 3.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(bounded[2] / bounded[2].norm(), gradient[2] / gradient[2].norm())
    alone = torch.cat([at_the_latents(3.0, latents[i : i + 1])[1] for i in range(3)]) / 3
    torch.testing.assert_close(bounded, alone, msg="a sample's bound does not depend on its batch")


def test_the_bound_reaches_the_parameters_through_the_sampler():
    """Far above every sample's gradient it changes nothing; far below, the update is that much shorter."""
    gradients = []
    for bound in (None, 1e3, 1e-6):
        objective = draft("none")
        objective.config = DraftConfig(max_sample_grad=bound)
        network = Network()
        objective(network, BATCH).per_sample.mean().backward()
        gradients.append(network.theta.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert 0 < float(gradients[2].norm()) < 1e-4 * float(gradients[0].norm())

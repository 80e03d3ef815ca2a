"""What the reward objectives share: the normalisation follows the scores of whole updates, however they are cut."""

import pytest
import torch
from bundle_toys import BATCH, SEED, Bundle, N, Network, at

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
    block = SamplingConfig(num_steps=N, guidance_scale=1.0, memory="stored")
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

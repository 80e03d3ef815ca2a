"""Pairs of the present policy: who wins, when the policy draws anew, and how a source goes on."""

import json

import pytest
import torch
from group_toys import PROMPTS, bright, moved
from pair_toys import policy_on, workplace

from align.data.online_pairs import OnlinePairs, OnlinePairsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.sampling import SamplingConfig
from align.training.checkpoint import decode, encode
from rewards import Composite
from rewards.python import Python, PythonConfig

SAMPLING = SamplingConfig(num_steps=2, guidance_scale=2.0)


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def online(policy, *, batch_size=3, rewards=None, **config) -> OnlinePairs:
    source = OnlinePairs(
        OnlinePairsConfig(**{"prompts": PROMPTS, "num_images": 3} | config), batch_size=batch_size, seed=0
    )
    source.prepare(workplace(policy, sampling=SAMPLING, rewards=rewards or bright()))
    return source


def brightness(policy, x):
    with torch.no_grad():
        return bright()(policy.model.codec.decode(x), [""] * len(x))["brightness"]


def test_the_winner_is_the_one_that_the_reward_likes_more(policy):
    batch = next(iter(online(policy)))
    assert len(batch) == 3 and batch.indices == (0, 1, 2) and set(batch.prompts) <= set(PROMPTS)
    gap = brightness(policy, batch.x_w) - brightness(policy, batch.x_l)
    assert bool((gap > -1 / 255).all()) and bool((gap > 0).any())
    pairs = batch.load()
    assert torch.equal(pairs.winner.sample(torch.randn(pairs.winner.mean.shape)), batch.x_w), "no noise of a codec"


def test_all_pairs_of_a_prompt_are_those_of_its_images(policy):
    """3 images are 3 pairs: one prompt serves an update of three."""
    source = online(policy, choose="all")
    batch = next(iter(source))
    assert len(set(batch.prompts)) == 1 and source.groups.config.num_prompts == 1
    images = torch.cat([batch.x_w, batch.x_l]).flatten(1)
    assert len(images.unique(dim=0)) == 3


def test_a_rollout_serves_every_n_updates_and_then_the_moved_policy_draws(policy):
    still, source = iter(online(policy, every=2)), iter(online(policy, every=2))
    expected = [next(still) for _ in range(3)]
    first = next(source)
    moved(policy, 0.1)
    second, third = next(source), next(source)
    assert torch.equal(first.x_w, expected[0].x_w) and torch.equal(second.x_w, expected[1].x_w), "drawn before it moved"
    assert third.prompts == expected[2].prompts and not torch.equal(third.x_w, expected[2].x_w)


def test_a_source_goes_on_within_a_rollout_and_across_its_border(policy):
    stream = iter(online(policy, every=2))
    whole = [next(stream) for _ in range(5)]
    for done in (1, 2):
        begun = iter(started := online(policy, every=2))
        for _ in range(done):
            next(begun)
        tensors = {}
        plain = json.loads(json.dumps(encode(started.state_dict(), tensors, "")))
        assert bool(tensors) == (done == 1), "what is left of a rollout is kept, and nothing once it is served"
        again = online(policy, every=2)
        again.load_state_dict(decode(plain, tensors))
        rest = iter(again)
        for batch in whole[done:]:
            now = next(rest)
            assert (now.prompts, now.indices, now.step) == (batch.prompts, batch.indices, batch.step)
            assert torch.equal(now.x_w, batch.x_w) and torch.equal(now.x_l, batch.x_l)


def test_pairs_that_are_too_close_are_replaced_by_the_next_rollouts(policy):
    plain = next(iter(online(policy)))
    gaps = brightness(policy, plain.x_w) - brightness(policy, plain.x_l)
    source = online(policy, margin=float(gaps.sort().values[1]) - 1e-4)
    batch = next(iter(source))
    assert len(batch) == 3 and source.number > 1
    assert bool((brightness(policy, batch.x_w) - brightness(policy, batch.x_l) > float(gaps.min())).all())


def test_a_reward_that_tells_nothing_apart_ends_the_run(policy):
    flat = Composite({"flat": Python(PythonConfig(function=lambda images, prompts: torch.ones(len(images))))})
    with pytest.raises(UserError, match="3 rollouts in a row have no pair"):
        next(iter(online(policy, rewards=flat)))


def test_diffusion_dpo_trains_on_them(policy):
    batch = next(iter(online(policy)))
    method = DiffusionDPO(DiffusionDPOConfig(beta=50.0, guard=True), Parts(policy.model, None, None, 0))
    whole = method(policy, batch).per_sample
    parts = torch.cat([method(policy, batch[:1]).per_sample, method(policy, batch[1:]).per_sample])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_what_cannot_work_is_refused():
    config = OnlinePairsConfig(prompts=["a"])
    assert dict(config.conflicts({"rewards": {}})).keys() == {"rewards"}
    assert "come again" in dict(DiffusionDPOConfig(num_draws=2).conflicts({"data": config}))[".num_draws"]
    assert not list(DiffusionDPOConfig().conflicts({"data": config}))

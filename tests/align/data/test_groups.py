"""Groups: what is drawn, what is kept, how updates are served, and that nothing of it depends on how it is cut."""

import json

import pytest
import torch
from group_toys import PROMPTS, SAMPLING, bright, groups, moved
from pair_toys import policy_on

from align.data._advantages import advantages
from align.data._wanted import Wanted
from align.data.groups import GroupsConfig
from align.policy.lora import AdapterConfig
from align.sampling import SamplingConfig, rollout
from align.training.checkpoint import decode, encode
from align.training.trainer import TrainConfig
from rewards import CombineConfig, Composite
from rewards.python import Python, PythonConfig
from samplers import Rng, noisy, split

STEPS = Wanted(transitions=True, means=True)


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def test_rows_are_prompt_by_prompt_and_numbered_over_the_run(policy):
    stream = iter(groups(policy, Wanted(draws=2)))
    first, second = next(stream), next(stream)
    assert first.groups == (0,) * 6 + (1,) * 6 and second.groups == (2,) * 6 + (3,) * 6
    assert first.indices == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    assert first.slot.tolist() == [0, 1] * 6 and (first.step, second.step, second.number) == (0, 1, 1)
    assert len(set(first.prompts)) == 2 and set(first.prompts) | set(second.prompts) == set(PROMPTS)


def test_an_image_is_the_policys_own_at_its_row_whatever_is_drawn_beside_it(policy):
    """x0 is the plain rollout of (seed, row), one image at once or six; its reward is that of the saved picture."""
    at_once, one_by_one = (next(iter(groups(policy, rollout_size=size))) for size in (6, 1))
    torch.testing.assert_close(at_once.x0, one_by_one.x0, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        alone = rollout(SAMPLING, policy.model, policy.role("train"), at_once.prompts[4:5], Rng(0, [4], 0)).x0
        pixels = (policy.model.codec.decode(alone) * 255).round() / 255
    torch.testing.assert_close(at_once.x0[4:5], alone, rtol=1e-4, atol=1e-5)
    scores = at_once.rollout.scores["brightness"]
    assert float(bright()(pixels, at_once.prompts[4:5])["brightness"]) == pytest.approx(float(scores[4]), abs=1e-5)
    expected = advantages({"r": scores}, {"r": 1.0}, at_once.rollout.groups, normalise="global", clip=5.0)
    assert torch.equal(at_once.advantage, expected.float())


def test_transitions_are_kept_of_the_window_and_are_the_policys_own(policy):
    """x_s was drawn from the step at x_t: its log-probability is the stored one, its mean the stored mean."""
    batch = next(iter(groups(policy, STEPS, window={"start": "random", "size": 2})))
    rollout_ = batch.rollout
    assert rollout_.states.shape[1] == 3 and len(batch) == 12 and rollout_.x0.numel() == 0
    assert batch.slot.tolist() == [0, 1] * 6
    denoiser = SAMPLING.guided(policy.role("train"), policy.model.text.encode([""]))
    with torch.no_grad():
        x0, eps = split(
            denoiser(batch.x_t, batch.t, policy.model.text.encode(batch.prompts)),
            batch.x_t,
            *denoiser.schedule(batch.t),
            denoiser.kind,
        )
        step = noisy(SAMPLING.law())(x0, eps, *denoiser.schedule(batch.t), *denoiser.schedule(batch.s))
    torch.testing.assert_close(step.log_prob(batch.x_s), batch.log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(step.mean, batch.mean, rtol=1e-4, atol=1e-4)
    noise = (batch.x_s - step.mean) / step.std.float()[:, None, None, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.15)


def test_nothing_is_kept_that_is_not_wanted(policy):
    images, means = next(iter(groups(policy))).rollout, next(iter(groups(policy, Wanted(transitions=True)))).rollout
    assert images.states.numel() == images.log_probs.numel() == images.means.numel() == 0 < images.x0.numel()
    assert means.means.numel() == means.x0.numel() == 0 < means.states.numel()


def test_windows_move_between_rollouts_and_are_seeded(policy):
    source = iter(groups(policy, STEPS, window={"start": "random", "size": 1}, sampling=SAMPLING))
    times = [next(source).rollout.times[0].item() for _ in range(6)]
    again = iter(groups(policy, STEPS, window={"start": "random", "size": 1}, sampling=SAMPLING))
    assert len(set(times)) > 1 and times == [next(again).rollout.times[0].item() for _ in range(6)]


def test_a_fraction_of_the_steps_is_drawn_for_each_image(policy):
    batch = next(iter(groups(policy, STEPS, train_fraction=0.5)))
    slots = batch.slot.view(6, 2)
    assert (slots[:, 0] < slots[:, 1]).all() and len({tuple(row) for row in slots.tolist()}) > 1
    assert batch.rollout.states.shape[1] == 5, "all steps of this grid have a density"


def test_a_group_may_share_its_first_noise(policy):
    still = SamplingConfig(num_steps=3, guidance_scale=1.0)
    batch = next(iter(groups(policy, shared_noise=True, sampling=still)))
    assert torch.equal(batch.x0[0], batch.x0[1]) and not torch.allclose(batch.x0[0], batch.x0[3], atol=1e-2)
    apart = next(iter(groups(policy, sampling=still)))
    assert not torch.allclose(apart.x0[0], apart.x0[1], atol=1e-2)


def test_the_reward_may_be_read_on_the_last_prediction(policy):
    seen = {name: next(iter(groups(policy, reward_on=name))).rollout.scores["brightness"] for name in ("x0", "x0_hat")}
    assert not torch.equal(*seen.values())


def test_groups_without_contrast_are_counted_and_may_be_left_out(policy):
    def first_prompt(images, prompts):
        return torch.tensor([float(i == 1 and p == prompts[0]) for i, p in enumerate(prompts)])

    rewards = Composite({"odd": Python(PythonConfig(function="math:sqrt", differentiable=False))})
    rewards.rewards["odd"].forward = first_prompt
    batch = next(iter(groups(policy, rewards=rewards)))
    assert float(batch.said["flat"]) == 0.5 and float(batch.said["reward/odd"]) == pytest.approx(1 / 6)
    assert batch.advantage[3:].tolist() == [0, 0, 0] and batch.advantage[:3].all()
    shorter = next(iter(groups(policy, rewards=rewards, skip_flat=True)))
    assert shorter.groups == (0, 0, 0) and float(shorter.said["flat"]) == 0.5
    assert torch.equal(shorter.advantage, batch.advantage[:3])


@pytest.mark.parametrize("overlap", [False, True])
def test_each_image_is_asked_for_once_without_gradient(policy, overlap):
    asked = []
    rewards = bright()
    known = rewards.rewards["brightness"].forward

    def counting(images, prompts):
        asked.append((len(images), torch.is_grad_enabled()))
        return known(images, prompts)

    rewards.rewards["brightness"].forward = counting
    stream = iter(groups(policy, rewards=rewards, rollout_size=4, overlap=overlap, num_prompts=4))
    plain = iter(groups(policy, rollout_size=4, num_prompts=4))
    for _ in range(2):
        found, expected = next(stream), next(plain)
        assert torch.equal(found.advantages, expected.advantages)
    assert asked == [(4, False)] * 3


def test_a_rollout_of_several_updates_is_drawn_once(policy):
    """4 prompts x 3 images, 6 an update: two updates, the second from the policy of the first."""
    stream = iter(groups(policy, STEPS, num_prompts=4))
    first = next(stream)
    moved(policy)
    second, third = next(stream), next(stream)
    assert (first.fresh, second.fresh, third.fresh) == (True, False, True)
    assert second.rollout is first.rollout is not third.rollout
    assert set(first.groups) == {0, 1} and set(second.groups) == {2, 3} and set(third.groups) == {4, 5}
    assert [float(b.said["queries"]) for b in (first, second, third)] == [12, 12, 24]


def test_a_source_goes_on_within_a_rollout_and_across_its_border(policy):
    settings = {"num_prompts": 4, "normalise": "running"}
    stream = iter(groups(policy, STEPS, **settings))
    whole = [next(stream) for _ in range(4)]
    for done in (1, 2, 3):
        first = iter(started := groups(policy, STEPS, **settings))
        for _ in range(done):
            next(first)
        tensors = {}
        plain = json.loads(json.dumps(encode(started.state_dict(), tensors, "")))
        assert bool(tensors) == (done != 2), "what is left of a rollout is kept, and nothing once it is served"
        taken_up = groups(policy, STEPS, **settings)
        taken_up.load_state_dict(decode(plain, tensors))
        rest = iter(taken_up)
        for expected in whole[done:]:
            batch = next(rest)
            assert (batch.prompts, batch.indices, batch.step) == (expected.prompts, expected.indices, expected.step)
            assert batch.fresh == expected.fresh and torch.equal(batch.advantage, expected.advantage)
            for name in ("x_t", "x_s", "t", "s", "log_prob", "mean"):
                assert torch.equal(getattr(batch, name), getattr(expected, name))


def test_slices_are_views_of_the_same_rollout(policy):
    batch = next(iter(groups(policy, STEPS)))
    part = batch[5:9]
    assert len(part) == 4 and part.rollout is batch.rollout
    assert torch.equal(part.x_t, batch.x_t[5:9]) and part.prompts == batch.prompts[5:9]


def test_what_cannot_work_is_refused():
    recipe = {"rewards": {}, "combine": CombineConfig(normalise="running"), "train": TrainConfig(batch_size=10)}
    recipe["adapter"] = AdapterConfig(dropout=0.1)
    found = dict(GroupsConfig(prompts=["a"], group_size=4, num_prompts=3).conflicts(recipe))
    assert set(found) == {"rewards", "combine.normalise", "train.batch_size", ".num_prompts", "adapter.dropout"}
    fine = {"rewards": {"a": 1}, "combine": CombineConfig(), "train": TrainConfig(batch_size=12)}
    fine["adapter"] = AdapterConfig()
    assert not list(GroupsConfig(prompts=["a"], group_size=4, num_prompts=6).conflicts(fine))

"""TDM-R1: what its rows are, how a group teaches the surrogate, its two trust regions, and what the student follows."""

import pytest
import torch
from few_toys import World
from group_toys import PROMPTS, groups
from pair_toys import gradients, policy_on

from align.data._group_rows import GroupBatch
from align.data.groups import GroupsConfig
from align.data.prompts import PromptsConfig
from align.objectives._base import Parts
from align.objectives.tdm_r1 import TDMR1, TDMR1Config
from align.policy.cast import gather
from align.sampling import SamplingConfig, rollout
from align.training.trainer import TrainConfig
from samplers import Rng

SAMPLING = SamplingConfig(num_steps=3, guidance_scale=1.0)


@pytest.fixture(scope="module")
def world(tiny_sd_factory):
    """(policy, objective, a batch of 2 prompts x 3 images x 2 of 3 steps)"""
    policy = policy_on(tiny_sd_factory())
    method = TDMR1(TDMR1Config(beta=50.0, surrogate_guidance=1.0), Parts(policy.model, SAMPLING, None, 0))
    gather(policy, method)
    batch = next(iter(groups(policy, method.wanted, sampling=SAMPLING, train_fraction=0.7)))
    return policy, method, batch


def gains(batch, values):
    return GroupBatch(**{**vars(batch), "advantages": torch.as_tensor(values, dtype=torch.float64)})


def of(policy, name, loss):
    own = policy.adapters[name].parameters()
    found = torch.autograd.grad(loss.per_sample.sum(), own, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, own, strict=True)]
    )


def test_rows_are_states_of_the_students_own_way(world):
    """x_t of the drawn steps, and the prediction that the two states of a step imply is the one that was made."""
    policy, method, batch = world
    assert len(batch) == 2 * 3 * 2 and batch.rollout.states.shape[1] == 4
    with torch.no_grad():
        rng = Rng(0, batch.rollout.indices.tolist(), 0)
        found = rollout(SAMPLING, policy.model, policy.role("train"), batch.rollout.prompts, rng, keep="all")
    rows = method.rows(policy, batch)
    for row, (image, j) in enumerate(zip(batch.image.tolist(), batch.slot.tolist(), strict=True)):
        torch.testing.assert_close(rows.x_t[row], found.states[j][image], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(rows.x0_hat[row], found.x0_hats[j][image], rtol=1e-2, atol=1e-2)
        assert float(rows.t[row]) == float(found.times[j])
    assert len(set(rows.keys)) == len(batch), "each row draws for itself"


def test_what_a_group_shares_is_shared_and_its_times_lie_above_the_state(world):
    _, method, batch = world
    rows = method.surrogate.noised(batch)
    by_look = {}
    for row, look in enumerate(zip(batch.groups, batch.slot.tolist(), strict=True)):
        by_look.setdefault(look, []).append((float(rows.tau[row]), float(rows.late[row])))
    assert all(len(set(drawn)) == 1 for drawn in by_look.values()) and len({d[0] for d in by_look.values()}) > 1
    assert bool((rows.tau >= 0.25 - 1e-9).all() and (rows.tau < 1).all()) and rows.x_tau.isfinite().all()


def test_without_advantages_the_surrogate_stays_the_base(world):
    policy, method, batch = world
    none = gains(batch, [0.0] * 6)
    margin = method.surrogate.before_update(policy, [none], lambda rows: rows)
    assert not any(margin.values())
    loss = method.surrogate(policy, none, margin)
    assert not of(policy, "surrogate", loss).any() and not loss.per_sample.any()


def test_rewards_are_only_compared(world):
    """A table of numbers does as well: its scale and level drop out, its order does not."""
    from align.data._advantages import advantages

    _, _, batch = world
    table, groups_of = torch.tensor([3.0, 1, 2, 10, 30, 20]), batch.rollout.groups
    one, two, turned = (
        advantages({"r": r}, {"r": 1.0}, groups_of, normalise="group", clip=5.0)
        for r in (table, 7 * table - 100, -table)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one, -turned, rtol=1e-3, atol=1e-3)


def test_the_surrogates_gradient_is_the_groups_preference(world):
    """At the base S = 0: L = (j' + 1)/K (1/2) A err, and the pull to the base has no gradient there."""
    policy, method, batch = world
    margin = method.surrogate.before_update(policy, [batch[:5], batch[5:]], lambda rows: rows)
    assert set(margin) == set(zip(batch.groups, batch.slot.tolist(), strict=True)) and not any(margin.values())
    loss = method.surrogate(policy, batch, margin)
    rows = method.surrogate.noised(batch)
    expected = 0.5 * rows.late.float() * batch.advantage * loss.metrics["error"]
    torch.testing.assert_close(loss.per_sample.detach(), expected)
    assert not loss.metrics["frozen"].any() and of(policy, "surrogate", loss).norm() > 0
    assert not of(policy, "default", method.surrogate(policy, batch, margin)).any()


def test_a_rows_weight_is_its_own_groups_at_its_own_look(world):
    """sigmoid(S) of (group, look)."""
    policy, method, batch = world
    keys = list(zip(batch.groups, batch.slot.tolist(), strict=True))
    margin = {key: 0.5 * place - 1 for place, key in enumerate(sorted(set(keys)))}
    assert len(margin) > 2
    loss = method.surrogate(policy, batch, margin)
    torch.testing.assert_close(loss.metrics["margin"], torch.tensor([margin[key] for key in keys]))
    late = method.surrogate.noised(batch).late.float()
    expected = loss.metrics["margin"].sigmoid() * late * batch.advantage * loss.metrics["error"]
    torch.testing.assert_close(loss.per_sample.detach(), expected)


def test_fake_learns_what_the_student_makes(world):
    """The error of its prediction of x0_hat, each row with the weight 1, and a pull to the base that is 0 at it."""
    policy, method, batch = world
    loss = method.fake(policy, batch)
    assert loss.weight.tolist() == [1.0] * len(batch) and loss.per_sample.min() > 0
    assert len(set(loss.per_sample.tolist())) == len(batch)
    assert of(policy, "fake", loss).norm() > 0 and not of(policy, "default", method.fake(policy, batch)).any()


def test_a_row_that_went_far_enough_is_left_out(world):
    """By its ratio to the average of before in the favourable direction, or by its distance to the base."""
    policy, method, batch = world
    own = policy.adapters["surrogate"].parameters()
    kept = [p.detach().clone() for p in own]
    try:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for p in own:
                p += 0.1 * torch.randn(p.shape, generator=generator)
        wide = method.config.model_copy(update={"radius": 1e9, "clip": 1e-6})
        method.surrogate.config = wide
        up = method.surrogate(policy, gains(batch, [1.0] * 6)).metrics
        down = method.surrogate(policy, gains(batch, [-1.0] * 6)).metrics
        assert torch.equal(up["frozen"] + down["frozen"], torch.ones(len(batch))), "each moved in one direction"
        method.surrogate.config = method.config.model_copy(update={"radius": 1e-9, "clip": 1e9})
        assert method.surrogate(policy, batch).metrics["frozen"].all()
        method.surrogate.config = method.config.model_copy(update={"radius": 1e9, "clip": 1e9})
        assert not method.surrogate(policy, batch).metrics["frozen"].any()
    finally:
        method.surrogate.config = method.config
        with torch.no_grad():
            for p, before in zip(own, kept, strict=True):
                p.copy_(before)


def test_with_an_untaught_surrogate_at_guidance_1_the_reward_pulls_nowhere(world):
    policy, method, batch = world
    loss = method.student(policy, batch)
    assert not loss.metrics["toward_reward"].any() and loss.metrics["toward_guidance"].min() > 0
    assert gradients(policy, loss).norm() > 0
    assert not of(policy, "surrogate", method.student(policy, batch)).any()


def test_only_the_first_steps_follow_the_surrogate(world):
    policy, method, batch = world
    full = method.student(policy, batch)
    kl, guidance = full.metrics["toward_kl"], full.metrics["toward_guidance"]
    torch.testing.assert_close(full.per_sample.detach(), 0.3 * guidance + kl)
    method.config = method.config.model_copy(update={"steps": 1})
    few = method.student(policy, batch).per_sample.detach()
    method.config = method.surrogate.config
    share = torch.where(batch.slot < 1, 1.0, 0.3)
    torch.testing.assert_close(few, 0.3 * guidance + share * kl)


def test_one_network_holds_the_student_and_four_adapters(world):
    policy, _, _ = world
    lora = sum(p.numel() for n, p in policy.model.network.named_parameters() if ".lora_" in n)
    one = sum(p.numel() for p in policy.adapter.parameters())
    assert lora == 4 * one and set(policy.adapters) == {"default", "fake", "surrogate", "surrogate_ema"}


def test_what_cannot_work_is_refused():
    recipe = {"data": PromptsConfig(prompts=PROMPTS), "sampling": SAMPLING}
    assert {key for key, _ in TDMR1Config().conflicts(recipe)} == {"data"}
    several = {"data": GroupsConfig(prompts=["a"], group_size=4, num_prompts=4), "train": TrainConfig(batch_size=8)}
    assert {key for key, _ in TDMR1Config().conflicts(several)} == {"data.num_prompts"}


def test_its_order_is_fake_surrogate_student():
    method = World("vp", 2).objective(TDMR1)
    assert [move.trainable for move in method.moves(0)] == ["fake", "surrogate", "default"]

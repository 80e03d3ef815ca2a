"""Unlearning: which rows go where and to what, a critic that cannot tell equal things apart and that no other move
touches, and preserved rows beside them or as what an update must not raise."""

import math

import pytest
import torch
from pair_toys import gradients, policy_on

from align.data.prompts import PromptBatch, PromptsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._critic import Critic
from align.objectives.unlearn import Unlearn, UnlearnConfig
from align.policy.cast import gather
from align.sampling import SamplingConfig
from align.training.movers import alone

CONCEPTS = {"cat": "dog", "cats": "dogs"}
BATCH = PromptBatch(("a cat", "a tree", "two cats"), (4, 5, 6), 2)


@pytest.fixture(scope="module")
def pipeline(tiny_sd_factory):
    return tiny_sd_factory()


def made(pipeline, *, b_scale=0.2, **config):
    known = getattr(pipeline.unet, "peft_config", None) or {}
    pipeline.unet.delete_adapters(list(known)) if known else None
    policy = policy_on(pipeline, b_scale=b_scale)
    block = SamplingConfig(num_steps=4, guidance_scale=1.0, memory="stored")
    objective = Unlearn(UnlearnConfig(**{"concepts": CONCEPTS} | config), Parts(policy.model, block, None, 3))
    gather(policy, objective)
    return objective, policy


def error(a, b):
    return (a - b).float().square().flatten(1).mean(1)


def test_whole_words_in_any_case_with_their_plurals():
    replaced = UnlearnConfig(concepts={"cat": "dog", "cats": "dogs", "van gogh": "a painter"}).replaced
    assert replaced("A Cat and two cats") == "A dog and two dogs"
    assert replaced("a concatenation, a caterpillar") is None and replaced("") is None
    assert replaced("stars by Van Gogh.") == "stars by a painter."


@pytest.mark.parametrize("held", ["output", "noise"])
def test_the_anchors_prediction_is_the_goal_and_the_rest_is_held(pipeline, held):
    objective, policy = made(pipeline, preserve=0.5, preserve_to=held)
    loss = objective(policy, BATCH)
    rows, others = objective._rows(policy, BATCH, [0, 2]), objective._rows(policy, BATCH, [1])
    assert rows.anchors == ["a dog", "two dogs"] and others.anchors == ["a tree"]

    def out(role, rows, prompts):
        with torch.no_grad():
            return policy.role(role)(rows.x_t, rows.t, policy.model.text.encode(prompts))

    moved = error(out("train", rows, ["a cat", "two cats"]), out("reference", rows, rows.anchors))
    torch.testing.assert_close(loss.per_sample[[0, 2]].detach(), moved, rtol=1e-4, atol=1e-6)
    base = out("reference", others, ["a tree"])
    goal = base if held == "output" else others.eps  # the tiny model predicts eps
    kept = error(out("train", others, ["a tree"]), goal)
    torch.testing.assert_close(loss.per_sample[[1]].detach(), 0.5 * kept, rtol=1e-4, atol=1e-6)
    assert gradients(policy, loss).norm() > 0 and torch.equal(loss.weight, torch.ones(3))


def test_nothing_pulls_at_preserved_rows_while_nothing_has_moved(pipeline):
    objective, policy = made(pipeline, b_scale=0.0)
    others = BATCH[1:2]
    assert gradients(policy, objective(policy, others)).abs().max() < 1e-7
    objective, policy = made(pipeline, b_scale=0.0, preserve_to="noise")
    assert gradients(policy, objective(policy, others)).abs().max() > 1e-4


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_away_from_the_concept_at_a_state_on_the_way_to_it(pipeline, strength):
    objective, policy = made(pipeline, target="negative", strength=strength)
    loss, rows = objective(policy, BATCH), objective._rows(policy, BATCH, [0, 2])
    assert rows.t[0] == rows.t[1] and rows.t[0] in objective.sampling.grid(policy.model).times[1:-1]
    with torch.no_grad():
        say = lambda role, prompts: policy.role(role)(rows.x_t, rows.t, policy.model.text.encode(prompts))  # noqa: E731
        own, none = say("reference", rows.prompts), say("reference", ["", ""])
        expected = error(say("train", rows.prompts), none - strength * (own - none))
    torch.testing.assert_close(loss.per_sample[[0, 2]].detach(), expected, rtol=1e-4, atol=1e-6)


def test_at_the_base_an_anchor_that_is_the_concept_asks_for_nothing(pipeline, monkeypatch):
    objective, policy = made(pipeline, b_scale=0.0, preserve=0.0)
    monkeypatch.setattr(UnlearnConfig, "replaced", lambda self, prompt: prompt)
    loss = objective(policy, BATCH)
    assert loss.per_sample.abs().max() < 1e-10 and gradients(policy, loss).abs().max() < 1e-6


def test_a_critic_cannot_tell_equal_things_apart(pipeline, monkeypatch):
    """theta = reference and c* = c_a: real and fake are the same, and no critic is below 2 log 2 at any row."""
    objective, policy = made(pipeline, b_scale=0.0, target="adversarial")
    monkeypatch.setattr(UnlearnConfig, "replaced", lambda self, prompt: prompt)
    optimiser = torch.optim.Adam(objective.critic.parameters(), 1e-2)
    for update in range(12):
        loss = objective.judge(policy, BATCH._replace(step=update))
        assert loss.per_sample.min() >= 2 * math.log(2) - 1e-5
        optimiser.zero_grad()
        loss.per_sample.sum().backward()
        optimiser.step()


def test_a_critic_learns_to_tell_different_things_apart_and_weighs_the_concepts_rows_alone(pipeline):
    objective, policy = made(pipeline, b_scale=1.0, target="adversarial")
    optimiser = torch.optim.Adam(objective.critic.parameters(), 1e-3)
    for _ in range(12):
        loss = objective.judge(policy, BATCH)
        optimiser.zero_grad()
        (loss.weight * loss.per_sample).sum().backward()
        optimiser.step()
    assert loss.weight.tolist() == [1, 0, 1] and loss.per_sample[1] == 0
    assert loss.metrics["told_apart"].mean() < 2 * math.log(2) - 0.1


def test_each_move_leaves_the_other_without_gradient(pipeline):
    objective, policy = made(pipeline, target="adversarial")
    both = [policy.adapter, objective.adapters["critic"].module]
    assert [move.trainable for move in objective.moves(0)] == ["default", "critic"]
    for moving, still, call in ((both[0], both[1], objective), (both[1], both[0], objective.judge)):
        with alone(moving, both):
            call(policy, BATCH).per_sample.sum().backward()
        assert all(p.grad is None for p in still.parameters())
        assert sum(float(p.grad.norm()) for p in moving.parameters() if p.grad is not None) > 0
        for parameter in moving.parameters():
            parameter.grad = None


def test_first_the_critic_alone():
    config = UnlearnConfig(concepts=CONCEPTS, target="adversarial", warmup=3)
    objective = object.__new__(Unlearn)
    objective.config, objective.adapters = config, {"critic": None}
    assert [[move.trainable for move in objective.moves(step)] for step in (2, 3)] == [
        ["critic"],
        ["default", "critic"],
    ]
    objective.adapters = {}
    assert [move.trainable for move in objective.moves(0)] == ["default"]


def test_a_row_of_the_critic_does_not_depend_on_the_others():
    critic, x0 = Critic((4, 16, 16), 0), torch.randn(5, 4, 16, 16)
    torch.testing.assert_close(critic(x0)[2:3], critic(x0[2:3]), rtol=1e-4, atol=1e-5)
    assert critic(x0).shape == (5, 16) and Critic((4, 4, 4), 0)(x0[..., :4, :4]).shape == (5, 4)
    assert torch.equal(Critic((4, 8, 8), 7).layers[0].weight, Critic((4, 8, 8), 7).layers[0].weight)


def test_with_surgery_the_preserving_loss_is_kept_and_not_added(pipeline):
    plain, policy = made(pipeline)
    added = plain(policy, BATCH)
    objective, policy = made(pipeline, surgery="pcgrad")
    loss = objective(policy, BATCH)
    assert added.kept is None and loss.per_sample[1] == 0
    torch.testing.assert_close(loss.per_sample + loss.kept, added.per_sample, rtol=1e-5, atol=1e-6)
    assert loss.kept[[0, 2]].tolist() == [0, 0] and loss.kept[1] > 0


@pytest.mark.parametrize("target", ["anchor", "negative", "adversarial"])
def test_parts_of_a_batch_may_have_no_rows_and_the_cut_changes_nothing(pipeline, target):
    objective, policy = made(pipeline, target=target)
    whole = objective(policy, BATCH)
    parts = [objective(policy, BATCH[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat([p.per_sample for p in parts]), whole.per_sample, rtol=1e-3, atol=1e-5)
    assert all(p.per_sample.requires_grad for p in parts)
    none, policy = made(pipeline, target=target, preserve=0.0)
    assert gradients(policy, none(policy, BATCH[1:2])).abs().max() == 0


def test_a_concept_that_never_comes_ends_the_run():
    objective = object.__new__(Unlearn)
    objective.config, objective._seen, objective._quiet = UnlearnConfig(concepts=CONCEPTS), 1, 0
    objective.after_update(lambda rows: rows)
    for _ in range(9):
        objective.after_update(lambda rows: rows)
    with pytest.raises(UserError, match="cat, cats: stood in no prompt of 10 updates"):
        objective.after_update(lambda rows: rows)


def test_what_does_not_fit_is_refused():
    data = PromptsConfig(prompts=["a tree", "a caterpillar"])
    ((key, text),) = UnlearnConfig(concepts=CONCEPTS).conflicts({"data": data})
    assert key == ".concepts" and "stands in none" in text
    ((key, _),) = UnlearnConfig(concepts=CONCEPTS, times=(0.0, 0.5)).conflicts({})
    assert key == ".times"
    one = {"sampling": SamplingConfig(num_steps=1)}
    ((key, _),) = UnlearnConfig(concepts=CONCEPTS, target="negative").conflicts(one)
    assert key == "sampling.num_steps"
    assert not list(UnlearnConfig(concepts=CONCEPTS).conflicts(one))

"""Whole runs of online RL and of few-step students: two processes are one, and an ended run goes on bit for bit."""

import json

import pytest
import torch
from several import WORKER, numbers, same_runs, smoothly, trained
from two_processes import together

import align
from align.run import Run
from align.training.checkpoint import Checkpoints

DATA = {"name": "groups", "prompts": ["a cat", "two", "x", "abc"], "group_size": 3, "rollout_size": 4}
PROMPTS = {"name": "prompts", "prompts": DATA["prompts"]}
STEPS = {"num_steps": 4, "guidance_scale": 2.0, "eta": 1.0}
PLAIN = {"num_steps": 3, "guidance_scale": 1.0}
METHODS = {
    "ddpo": {  # a rollout of 12 images serves two updates; the second is off-policy
        "objective": {"name": "ddpo", "clip": 0.1},
        "data": DATA | {"num_prompts": 4, "normalise": "running"},
        "sampling": STEPS,
    },
    "grpo": {
        "objective": {"name": "grpo", "guard": True, "kl": 0.1, "mask": 1e-3, "clip": 0.1},
        "data": DATA | {"num_prompts": 4, "window": {"start": "random", "size": 2}, "shared_noise": True},
        "sampling": STEPS | {"noise_law": "cps", "eta": 0.7},
    },
    "nft": {
        "objective": {"name": "nft", "num_draws": 2, "old_rate": 0.2},
        "data": DATA | {"num_prompts": 4},
        "sampling": PLAIN,
    },
    "awm": {"objective": {"name": "awm", "num_draws": 2, "old_rate": 0.1}, "data": DATA, "sampling": PLAIN},
    "dgpo": {"objective": {"name": "dgpo", "num_draws": 2}, "data": DATA | {"overlap": True}, "sampling": PLAIN},
    "tdm": {"objective": {"name": "tdm", "fake_updates": 2}, "data": PROMPTS, "sampling": PLAIN},
    "diff_instruct": {"objective": {"name": "diff_instruct", "form": "score"}, "data": PROMPTS, "sampling": PLAIN},
    "tdm_r1": {
        "objective": {"name": "tdm_r1", "beta": 50.0, "clip": 0.5},
        "data": DATA | {"train_fraction": 0.7},
        "sampling": PLAIN,
    },
}
OF_ROLLOUTS = ("ddpo", "grpo", "nft")
ENDED = [(name, done) for name in METHODS for done in ((1, 2) if name in OF_ROLLOUTS else (2,))]


@pytest.fixture(scope="module")
def recipes(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    tiny_sd_factory().save_pretrained(folder / "model")
    common = {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "rewards": {"brightness": {}},
        "optim": {"algorithm": "sgd", "lr": 1e-2},  # Adam would blow up the rounding of gradients that are almost 0
        "train": {
            "num_updates": 4,
            "batch_size": 6,
            "micro_batch_size": 4,
            "checkpoint_every": 1,
            "keep_checkpoints": 9,
        },
    }
    return {name: common | blocks for name, blocks in METHODS.items()}


@pytest.fixture(scope="module")
def whole(recipes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {name: align.train(recipe, output=str(folder / name)) for name, recipe in recipes.items()}


def test_two_processes_give_the_run_of_one(recipes, whole, tmp_path):
    """A group's images lie on both: advantages, DGPO's margins and the gradient are of all rows."""
    file = tmp_path / "recipes.json"
    file.write_text(json.dumps(recipes))
    together(WORKER, file, tmp_path / "two")
    for name, one in whole.items():
        two = Run(tmp_path / "two" / name)
        assert (one.report.num_processes, two.report.num_processes) == (1, 2)
        assert one.report.network_calls == two.report.network_calls
        for mine, expected in zip(numbers(two), numbers(one), strict=True):
            assert mine == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        first = trained(one)
        assert sum(float(t.abs().sum()) for t in first.values()) > 0
        for key, tensor in trained(two).items():
            torch.testing.assert_close(tensor, first[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [5, 2])
def test_three_processes_give_it_too(recipes, tmp_path, rows):
    """One group: 2, 2 and 1 of its images, or one on two of the three, and none on the third."""
    trees = {}
    for name, recipe in recipes.items():
        groups = {"group_size": rows} if recipe["data"]["name"] == "groups" else {}
        groups |= {"num_prompts": 2} if "num_prompts" in recipe["data"] else {}
        trees[name] = smoothly(recipe, rows) | {"data": recipe["data"] | groups}
    same_runs(trees, tmp_path, 3, timeout=1200)


def test_the_first_updates_are_on_policy_and_the_second_ones_are_not(whole):
    for name in ("ddpo", "grpo"):
        gaps = [record["ratio_gap"] for record in whole[name].metrics]
        assert gaps[0] == gaps[2] == 0 and gaps[1] > 0 and gaps[3] > 0


@pytest.mark.parametrize(("name", "done"), ENDED)
def test_a_run_that_was_ended_goes_on_bit_for_bit(recipes, whole, tmp_path, name, done):
    """Ended between two rollouts, and within one that serves several updates; what `old` is goes on with it."""
    checkpoint = Checkpoints(whole[name].output / "checkpoints").steps()[done - 1]
    run = align.train(recipes[name], output=str(tmp_path / "run"), resume=str(checkpoint))
    assert numbers(run) == numbers(whole[name]), "the record is of what led to the adapter"
    first, second = trained(whole[name]), trained(run)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["tdm"])
def test_a_run_killed_in_the_middle_of_a_round_begins_that_round_again(recipes, whole, tmp_path, name):
    """In the third round fake has moved, the student has not: nothing of that round is kept."""
    from align.objectives.tdm import TDM

    known, done = TDM.student, []

    def failing(self, policy, batch, context=None):
        done.append(batch.step)
        if batch.step == 2:
            raise KeyboardInterrupt
        return known(self, policy, batch, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TDM, "student", failing)
        with pytest.raises(KeyboardInterrupt):
            align.train(recipes[name], output=str(tmp_path / "run"))
    assert 2 in done
    run = align.train(recipes[name], output=str(tmp_path / "run"))
    assert numbers(run)[2:] == numbers(whole[name])[2:]
    assert all(torch.equal(tensor, trained(whole[name])[key]) for key, tensor in trained(run).items())


@pytest.mark.parametrize("name", ["ddpo", "nft"])
def test_a_run_killed_within_a_rollout_draws_it_again(recipes, whole, tmp_path, name):
    """The reward fails in the middle of the third update's rollout: the same command goes on from the checkpoint."""
    from rewards.brightness import Brightness

    asked, known = [], Brightness.forward

    def failing(self, images, prompts):
        asked.append(len(images))
        if sum(asked) > 12 + 4:  # the second rollout, its second part
            raise KeyboardInterrupt
        return known(self, images, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brightness, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            align.train(recipes[name], output=str(tmp_path / "run"))
    run = align.train(recipes[name], output=str(tmp_path / "run"))
    assert numbers(run)[2:] == numbers(whole[name])[2:]
    assert all(torch.equal(tensor, trained(whole[name])[key]) for key, tensor in trained(run).items())

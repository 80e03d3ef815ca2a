"""sampling.levers.fast: what it stands for, what it leaves out, and that both are said."""

import re

import pytest
import torch

from align.config import load_recipe
from align.plan.verdict import plan
from align.sampling import SamplingConfig
from align.sampling.levers import FAST, described, prefixed
from samplers import FlowSchedule, Prediction, TensorCond, grids


def block(**settings) -> SamplingConfig:
    guided = {} if "guidance" in settings else {"guidance_scale": 3.0}
    return SamplingConfig(**{"num_steps": 10, "levers": {"fast": True}, **guided, **settings})


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


def test_fast_is_spelled_out_once_and_stays_so(gpu, monkeypatch):
    levers = block().levers
    assert (levers.guidance, levers.precision) == ("refresh", "bf16" if gpu else "full")
    assert (levers.steps, levers.reuse) == (None, 1)  # these turn the gradient
    assert described(block(), "fp32") == (
        "takes guidance refresh and precision bf16"
        if gpu
        else "takes guidance refresh; leaves out precision bf16 (this machine has no GPU)"
    )
    read = SamplingConfig(**block().model_dump(mode="json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not gpu)  # on another machine it is the same recipe
    assert SamplingConfig(**read.model_dump(mode="json")) == read


def test_of_a_network_in_bf16_it_says_that_the_adapter_alone_changes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert described(block(), "bf16").endswith("precision bf16, of the adapter alone: the network has it already")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance_scale": 1.0}, r"guidance refresh \(there is none\)"),
        ({"num_steps": 2}, r"guidance refresh \(one step before the window is guided in full\)"),
        ({"window": "full"}, r"refresh \(levers are for window=last and.*bf16 \(levers are for window=last"),
        ({"step_rule": "heun"}, r"refresh \(levers are for .* ddim or euler\), precision"),
        ({"guidance": {"scale": 3, "skip": "fraction"}}, r"refresh \(levers act on one scale"),
        ({"last_k": 10}, r"levers have no steps to act on: last_k=10 of 10"),
        ({"levers": {"fast": True, "guidance": "none"}}, r"guidance refresh \(guidance: none is set beside it\)"),
        ({"levers": {"fast": True, "guidance": "full"}}, r"guidance refresh \(guidance: full is set beside it\)"),
    ],
)
def test_what_does_not_apply_is_left_out_and_said(settings, said, gpu):
    found = block(**settings)
    assert re.search(said, described(found, "fp32")) and found.levers.guidance != "refresh"


def test_without_it_nothing_is_said_and_nothing_taken():
    assert described(block(levers={"guidance": "refresh"}), "fp32") == described(block(levers=None), "fp32") == ""
    assert block(levers={}).levers.any is False
    assert set(FAST) == {"guidance", "precision"}


class Asked:
    """A denoiser that notes (role, t, rows) of each call."""

    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self, calls, name="train"):
        self.calls, self.name = calls, name

    def beside(self, name):
        return Asked(self.calls, name)

    def __call__(self, x_t, t, cond):
        self.calls.append((self.name, round(float(t), 2), len(x_t)))
        return 0.1 * x_t


@pytest.mark.parametrize(
    ("lever", "rows"), [({"guidance": "none"}, [2, 2, 2, 2]), ({"guidance": "refresh"}, [4, 2, 4, 2])]
)
def test_the_prefix_is_drawn_by_the_roles_that_the_block_gives_its_times(lever, rows):
    calls, cond = [], TensorCond({"c": torch.zeros(2, 1)})
    drawn = block(num_steps=6, last_k=2, roles=[["reference", 0.6], ["train", 0]], levers=lever)
    prefixed(drawn, Asked(calls), cond[:1], torch.randn(2, 3, 2, 2), grids.flow(6), cond)
    names = ["reference", "reference", "reference", "train"]
    assert calls == list(zip(names, [1.0, 0.83, 0.67, 0.5], rows, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_sd_factory):
    path = tmp_path_factory.mktemp("levers") / "model"
    tiny_sd_factory().save_pretrained(path)
    return path


def recipe(folder, levers, **sampling):
    return {
        "model": {"name": "sd", "checkpoint": str(folder)},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a", "b"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 6, "guidance_scale": 2.0, "last_k": 1, "levers": levers, **sampling},
        "train": {"batch_size": 2},
    }


def test_the_recipe_and_its_plan_say_what_was_taken(folder):
    loaded = load_recipe(recipe(folder, {"fast": True, "precision": "bf16"}))
    assert loaded.dump()["sampling"]["levers"]["guidance"] == "refresh"
    lines = dict(line.split(maxsplit=1) for line in plan(loaded).splitlines())
    assert lines["fast"] == "takes guidance refresh and precision bf16"
    assert lines["levers"] == (
        "of the calls before the steps with gradient would save 20% sampling.levers.fast=true, "
        "50% sampling.levers.guidance=none, 60% sampling.levers.steps=2, 75% sampling.levers.reuse=4"
    )
    assert lines["network"].startswith("calls  24 rows an update: 20 forward, of which 4 with gradient")  # 24 without

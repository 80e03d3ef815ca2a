"""Small parts of the policy by themselves: followers, roles, shares of prompts, files that are not there."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from align_toys import ToyNetwork, toy_policy
from safetensors.torch import save_file
from torch import nn

from align.errors import UserError
from align.policy.adapter_file import at_step
from align.policy.adapter_state import read_state
from align.policy.adapter_tensors import _alpha
from align.policy.cast import Follower, Frozen, Snapshot, of_guidance
from align.policy.lora import AdapterConfig
from align.policy.painter import Painter
from align.policy.trainable import Adapter, Module


def holding(value):
    own = [nn.Parameter(torch.full((2,), value))]
    return SimpleNamespace(parameters=lambda: own)


def test_a_follower_that_copies_becomes_what_it_follows_and_one_that_averages_goes_a_part_of_the_way():
    for kind, expected in ((Snapshot(every=1), 3.0), (Snapshot(decay=0.75), 1.5), (Snapshot(every=2), 1.0)):
        follower = Follower(holding(1.0), holding(3.0), kind)
        follower.advance(1)
        assert follower.adapter.parameters()[0].tolist() == [expected] * 2
        follower.copy()
        assert follower.adapter.parameters()[0].tolist() == [3.0] * 2


def test_what_an_objective_brings_along_is_trained_where_it_was_frozen():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2)).requires_grad_(False)
    Module(network, list(network[2].parameters()), lambda folder: None)
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True] and not network.training


def test_another_role_is_of_the_same_policy():
    policy = toy_policy(0, rank=2)
    other = policy.role("train").beside("reference")
    assert (other.policy, other.name) == (policy, "reference")


def block(source):
    how = SimpleNamespace(negative=None if source is None else SimpleNamespace(source=source))
    return SimpleNamespace(how=how)


def test_the_negative_of_guidance_is_one_file_in_training_and_in_the_report():
    def of(sampling, *report):
        evaluate = SimpleNamespace(sampling=report[0] and block(report[0])) if report else None
        return of_guidance(SimpleNamespace(sampling=block(sampling), evaluate=evaluate))

    for found in (of("a"), of("a", None), of("a", "a"), of(None, "a")):
        assert found == {"negative": Frozen("a")}
    assert of(None) == of(None, None) == {}
    with pytest.raises(UserError, match="a and b"):
        of("a", "b")


def test_alpha_is_pefts_8_where_a_file_has_settings_without_one():
    path = Path("x.safetensors")
    assert _alpha(path, "m", {}, 4) == 4 and _alpha(path, "m", {"r": 4}, 4) == 8
    patterns = {"alpha_pattern": {"n": 2}}
    assert _alpha(path, "m", patterns, 4) == 8 and _alpha(path, "a.n", patterns, 4) == 2


def test_layers_that_take_no_adapter_are_named():
    network = nn.Sequential()
    network.add_module("norm", nn.LayerNorm(4))
    network.add_module("to_q", nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"norm.*no layer can be adapted"):
        Adapter(AdapterConfig(targets=["norm"]), network, ["to_q"], seed=0)
    assert Adapter(AdapterConfig(rank=2), ToyNetwork(), ["to_q"], seed=0).parameters()


def test_an_adapter_of_an_update_that_was_not_kept(tmp_path):
    (tmp_path / "adapters" / "step-000050").mkdir(parents=True)
    assert at_step(tmp_path, 50) == tmp_path / "adapters" / "step-000050"
    with pytest.raises(UserError, match=r"no adapter of update 60.*It has those of 50"):
        at_step(tmp_path, 60)
    with pytest.raises(UserError, match="there is no such folder"):
        at_step(tmp_path / "none", 50)


def test_a_checkpoint_of_a_negative_alone_is_read(tmp_path):
    """It trains the adapter `negative`, and nothing is handed over beside it."""
    recipe = {"model": {"name": "sd", "checkpoint": "tiny"}, "adapter": {"rank": 2, "alpha": 4, "rslora": False}}
    for objective, name in (({"train": "negative"}, "negative"), ({}, "default")):
        (tmp_path / "meta.json").write_text(json.dumps({"recipe": recipe | {"objective": objective}}))
        save_file(
            {f"/down.to_q.lora_{end}.{name}.weight": torch.ones(2, 2) for end in "AB"},
            tmp_path / "trainable.safetensors",
        )
        assert list(read_state(tmp_path / "trainable.safetensors", None).layers) == ["down.to_q"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": {}}'])
def test_a_checkpoint_that_is_damaged_is_said(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        read_state(tmp_path / "trainable.safetensors", None)


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 1, 2]), (1, [3, 4])])
def test_prompts_are_shared_evenly_among_processes(monkeypatch, rank, rows):
    """Five prompts for two: three and two, though one batch would hold them all."""
    two = SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
    drawn, scores = [], torch.arange(5.0)

    def images(self, role, prompts, indices, stream):
        drawn.extend(indices)
        return torch.zeros(len(prompts), 3, 2, 2)

    def gathered(mine):
        there = {start: {"r": scores[start : start + 3]} for start in (0, 3)}
        return [there if isinstance(next(iter(mine[0].values())), dict) else {0: torch.zeros(3), 3: torch.zeros(2)}]

    monkeypatch.setattr(Painter, "images", images)
    monkeypatch.setattr("align.policy.painter.gather_object", gathered)
    painter = object.__new__(Painter)
    painter.accelerator, painter.batch_size = two, 64
    found, _ = painter.score(
        "train", list("abcde"), lambda images, prompts: {"r": torch.zeros(len(prompts))}, stream="x"
    )
    assert drawn == rows and torch.equal(found["r"], scores)

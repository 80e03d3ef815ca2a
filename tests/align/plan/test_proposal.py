"""Whether a recipe fits, and what is proposed where not: on a tiny model, with budgets taken from its own plan."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe
from align.errors import UserError
from align.plan.budget import CONTEXT, GIB, budget
from align.plan.meter import Peak
from align.plan.propose import Change, described, foretold, gigabytes, propose, verdict
from align.plan.rehearsal import rehearse
from align.plan.rewards import Need, need
from align.registry import REWARDS


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_sd_factory):
    folder = tmp_path_factory.mktemp("plan") / "model"
    tiny_sd_factory().save_pretrained(folder)
    return load_recipe(
        {
            "model": {"name": "sd", "checkpoint": str(folder)},
            "objective": "draft",
            "data": {"name": "prompts", "prompts": ["a", "b"]},
            "rewards": {"brightness": {}},
            "sampling": {"num_steps": 3, "image_size": [128, 128]},
            "train": {"batch_size": 8},
        }
    )


def test_the_cheapest_changes_that_fit_are_proposed_and_no_more(recipe):
    whole = budget(recipe, rehearse(recipe, with_rewards=True, gpu=True), gpu=True).total
    assert whole > CONTEXT
    assert propose(recipe, whole / GIB).changes == ()
    found = propose(recipe, (whole - 1) / GIB)
    assert found.fits and [list(change.overrides) for change in found.changes] == [["model.decode_chunk"]]
    told: list[str] = []
    assert "to paste: align train x model.decode_chunk=1" in described(
        recipe, (whole - 1) / GIB, told.append, "align train x"
    )
    assert told[1].startswith("needs ") and "each a rehearsal, until it fits" in told[1], "before the changes are tried"
    wanted = ["rehearses the recipe as it is", "rehearses the recipe with model.decode_chunk=1"]
    assert [said for said in told if said.startswith("rehearses")] == wanted, (
        "each once: a rehearsal of a large model takes a minute"
    )
    again = load_recipe(recipe, found.overrides())
    assert budget(again, rehearse(again, with_rewards=True, gpu=True), gpu=True).total == found.needed.total


def test_where_weights_lie_changes_no_rehearsal(recipe, monkeypatch):
    plain = rehearse(recipe, with_rewards=True, gpu=True)
    moved = load_recipe(recipe, {"model.offload_text": True})
    assert plain == rehearse(moved, with_rewards=True, gpu=True), "so it is not rehearsed again"
    tried = [Change({"model.offload_text": True}, ""), Change({"model.decode_chunk": 1}, "")]
    monkeypatch.setattr("align.plan.propose.changes", lambda *_: tried)
    told: list[str] = []
    verdict(recipe, plain, 0.1, told.append)
    assert told[0] == "rehearses the recipe with model.decode_chunk=1" and len(told) == 2, "and what it gave"
    assert verdict(recipe, plain, 1000).startswith("yes")


def test_what_helped_nothing_is_tried_again_when_another_phase_needs_most(recipe, monkeypatch):
    """The first change alone lowers a phase that is not the largest: it counts once the second has lowered that."""
    first, second = Change({"model.decode_chunk": 1}, "1"), Change({"train.micro_batch_size": 1}, "2")
    totals = {"": 30, "1": 30, "2": 20, "21": 10}  # by the prices of what is taken
    monkeypatch.setattr("align.plan.propose.changes", lambda *_: [first, second])
    monkeypatch.setattr(
        "align.plan.propose._needed",
        lambda recipe, taken, rehearsed, say: (
            rehearsed.setdefault("", None),
            SimpleNamespace(total=totals["".join(change.price for change in taken)] * GIB),
        )[1],
    )
    found = propose(recipe, 12)
    assert found.fits and found.changes == (second, first)
    assert not propose(recipe, 5).fits


def test_what_fits_by_no_change_is_said(recipe, monkeypatch):
    monkeypatch.setattr("align.plan.propose.changes", lambda *_: [Change({"model.decode_chunk": 1}, "nothing")])
    said = described(recipe, 0.1)
    assert "model.decode_chunk=1  # nothing" in said and "nothing more is known here" in said


def test_the_command_and_a_size_that_is_none(recipe, tmp_path):
    (tmp_path / "own.yaml").write_text(recipe.yaml())
    said = CliRunner().invoke(app, ["plan", str(tmp_path / "own.yaml"), "--memory", "24GB"])
    assert said.exit_code == 0 and "fits 24 GiB as it is" in said.output
    silent = CliRunner().invoke(app, ["plan", str(tmp_path / "own.yaml")])
    assert "plans for a GPU of 24GB, as this machine has none" in silent.stderr and "fits 24 GiB" in silent.stdout
    dry = ["train", str(tmp_path / "own.yaml"), "--dry-run", "--memory", "16GB"]
    assert "fits 16 GiB" in CliRunner().invoke(app, dry).stdout
    with pytest.raises(UserError, match="--memory lots"):
        gigabytes("lots")
    assert gigabytes("16GB") == gigabytes("16 GiB") == gigabytes("16") == 16


def test_a_training_on_a_gpu_begins_with_what_it_will_need(recipe, tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(recipe.yaml())
    command = [
        "train",
        str(tmp_path / "own.yaml"),
        f"output={tmp_path / 'run'}",
        "train.num_updates=1",
        "train.batch_size=2",
    ]
    whole = budget(
        load_recipe(recipe, {"train.batch_size": 2}), rehearse(recipe, with_rewards=True, gpu=True), gpu=True
    )
    adapters = []
    for size, said in (
        (None, None),
        (24.0, "of 24.0 GiB\n"),
        (whole.total / GIB / 2, "may run out of memory. align plan"),
    ):
        monkeypatch.setattr("align.plan.propose.of_this_machine", lambda size=size: size)
        ran = CliRunner().invoke(app, [*command, "--resume", "never"])
        assert ran.exit_code == 0, ran.output
        assert said in ran.output if said else "by its plan" not in ran.output
        adapters.append((tmp_path / "run" / "adapter" / "pytorch_lora_weights.safetensors").read_bytes())
    assert adapters[0] == adapters[1] == adapters[2], "a plan draws none of training's random numbers"
    assert foretold(load_recipe("draft/shapes"), 24, "align plan draft/shapes") == "", "it fits everywhere"


def test_a_reward_at_its_published_size_is_weighed_without_its_checkpoint():
    config = REWARDS.config_class("clip")(model="openai/clip-vit-base-patch32")
    found = need(config, (64, 64), 2)
    assert found.known and found.weights == pytest.approx(4 * 151.28e6, rel=0.01)
    assert 0 < found.kept <= found.peak and found.flops > 0
    away = need(config.model_copy(update={"offload": True}), (64, 64), 2)
    assert away.offload and away.kept == 4 * 2 * 3 * 64 * 64 and away.peak == found.peak


def test_rewards_spike_where_they_score(recipe, monkeypatch):
    """One that is off-loaded comes with its weights and leaves no graph."""
    from align.plan import rehearsal

    plain = rehearse(recipe, with_rewards=True, gpu=True).peak
    costs = {"brightness": Need(weights=GIB, kept=0, peak=GIB, offload=True)}
    monkeypatch.setattr(rehearsal, "needs", lambda *_: costs)
    assert 2 * GIB < rehearse(recipe, with_rewards=True, gpu=True).peak < 2 * GIB + plain


def test_a_stretch_is_what_a_part_costs_beside_the_rest():
    import torch

    with Peak() as meter:
        held = torch.zeros(1000)
        with meter.stretch() as found:
            left = torch.zeros(100)
            torch.zeros(500)
        assert (found.bytes, found.kept) == (2400, 400) and meter.peak == held.nbytes + found.bytes
        del left

"""Wrong recipes, three or more of each kind: file, key and way out are named, exit code 2, nothing is left behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe

GOOD: dict[str, Any] = {
    "model": {"name": "sd", "checkpoint": "owner/name"},
    "objective": {"name": "draft"},
    "data": {"name": "prompts", "prompts": ["a", "b"]},
    "rewards": {"brightness": {}},
    "sampling": {"num_steps": 8},
    "output": "the_run",
}

UNREAD = ["a red circle", "a cat"]
READ = {"data.prompts": ["a red circle"]}
FEW = {"num_prompts": 2, "num_pictures": 1}

# (kind, overrides of GOOD, the key that is named, words of the way out)
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown key", {"trian": {"num_updates": 3}}, "trian", 'Did you mean "train"'),
    ("unknown key", {"optim.learning_rate": 1e-4}, "optim.learning_rate", "Known here: algorithm, lr"),
    ("unknown key", {"objective.num_noise": 2}, "objective.num_noise", 'Did you mean "num_noises"'),
    ("unknown key", {"model.dtype.unet": "bf16"}, "model.dtype.unet", "Known here: network, text, vae"),
    ("wrong type", {"optim.lr": "fast"}, "optim.lr", "Set lr to a number"),
    ("wrong type", {"train.num_updates": 1.5}, "train.num_updates", "Set num_updates to a whole number"),
    ("wrong type", {"adapter": 8}, "adapter", "Set it to a mapping"),
    ("wrong type", {"rewards": ["brightness"]}, "rewards", "Write it as `name:"),
    ("wrong type", {"train.mixed_precision": "fp8"}, "train.mixed_precision", "one of 'no', 'fp16' or 'bf16'"),
    ("wrong type", {"adapter.targets": 3}, "adapter.targets", "Set targets to a list or text"),
    ("out of range", {"adapter.rank": 0}, "adapter.rank", "Set rank >= 1"),
    ("out of range", {"optim.lr": -1e-4}, "optim.lr", "Set lr > 0"),
    ("out of range", {"train.seed": 2**63}, "train.seed", "Set seed < "),
    ("out of range", {"optim.betas": [0.9, 1.0]}, "optim.betas.1", "< 1"),
    ("out of range", {"optim.lr": float("inf")}, "optim.lr", "a finite number"),
    ("out of range", {"adapter.dropout": 1.0}, "adapter.dropout", "Set dropout < 1"),
    ("out of range", {"rewards.brightness.weight": float("nan")}, "rewards.brightness.weight", "a finite number"),
    ("cross-field", {"sampling.last_k": 10}, "sampling.last_k", "Set last_k <= 8"),
    ("cross-field", {"train.batch_size": 4, "train.micro_batch_size": 8}, "train", "Set micro_batch_size <= 4"),
    ("cross-field", {"objective.target": 1.0, "objective.margin": 2.0}, "objective", "Set one of them"),
    ("cross-field", {"sampling.step_rule": "euler", "sampling.eta": 0.5}, "sampling.eta", "Use ddim"),
    ("cross-field", {"rewards": {}}, "rewards", "Add it, such as"),
    ("cross-field", {"rewards.brightness.weight": 0}, "rewards.brightness.weight", "there is nothing to learn. Give"),
    ("missing file", {"data.prompts": "no/such.txt"}, "data.prompts", "Check the path"),
    ("missing file", {"model.checkpoint": "./no_such_model"}, "model.checkpoint", "Check the path"),
    ("missing file", {"adapter.init": "./no_such_adapter"}, "adapter.init", "Give the folder"),
    (
        "missing file",
        {"rewards": {"mine": {"name": "python", "function": "no_such.py:warmth"}}},
        "rewards.mine.function",
        "Check the path",
    ),
    ("unknown name", {"objective.name": "drfat"}, "objective", 'Did you mean "draft"'),
    ("unknown name", {"rewards": {"clp": {}}}, "rewards.clp", 'Did you mean "clip"'),
    ("unknown name", {"model.name": "sdx"}, "model", 'Did you mean "sdxl"'),
    ("unknown name", {"model.checkpoint": "embedded:shapes"}, "model.checkpoint", "Known: "),
    ("unknown name", {"hooks": {"watch": {"name": "no_such_module:Watch"}}}, "hooks.watch", "Install it"),
    (
        "unknown name",
        {"hooks": {"metrics": {"trackers": ["tensorbord"]}}},
        "hooks.metrics.trackers.0",
        'Did you mean "tensorboard"',
    ),
    ("unknown name", {"hooks": {"metrics": {"trackers": ["./no.py:T"]}}}, "hooks.metrics.trackers.0", "Check the path"),
    ("unknown name", {"data.prompts": "shapes:trian"}, "data.prompts", "shapes:train"),
    ("not differentiable", {"rewards": {"judge": {}}, **READ}, "rewards.judge", "Watch it in hooks.panel.rewards"),
    ("not differentiable", {"rewards": {"brightness": {}, "gold": {}}, **READ}, "rewards.gold", "train on another"),
    (
        "not differentiable",
        {"rewards": {"mine": {"name": "python", "function": "math:sqrt", "differentiable": False}}},
        "rewards.mine",
        "train on another",
    ),
    ("unwritable output", {"output": "a_file"}, "output", "Choose another folder"),
    ("unwritable output", {"output": "a_file/run"}, "output", "Choose another folder"),
    ("unwritable output", {"output": "/proc/no_such/run"}, "output", "Choose another folder"),
    ("bad prompts", {"data.prompts": "empty.txt"}, "data.prompts", "Give at least one"),
    ("bad prompts", {"data.prompts": ["a", "  "]}, "data.prompts", "Remove it or write it"),
    ("bad prompts", {"data.prompts": "latin1.txt"}, "data.prompts", "Save the file as UTF-8"),
    ("bad prompts", {"data.prompts": "prompts.csv"}, "data.prompts", "there are no prompts in it"),
    ("bad prompts", {"data.prompts": "broken.jsonl"}, "data.prompts", "line 2 has no text"),
    ("unread prompts", {"rewards": {"detector": {}}}, "data.prompts", "(2 of 2 prompts are so.)"),
    (
        "unread prompts",
        {"evaluate": {"prompts": UNREAD, "rewards": {"judge": {}}, **FEW}},
        "evaluate.prompts",
        "Say for",
    ),
    (
        "unread prompts",
        {"hooks.panel": {"prompts": UNREAD, "rewards": {"ocr": {}}}},
        "hooks.panel.prompts",
        "a sign that",
    ),
    ("unread prompts", {"hooks.guard": {"prompts": UNREAD, "rewards": {"gold": {}}}}, "hooks.guard.prompts", "'a cat'"),
    (
        "unread prompts",
        {
            "hooks.samples": {"prompts": UNREAD},
            "sampling.guidance": {"dynamic": {"rewards": {"eye": {}}}},
            "data.prompts": UNREAD[:1],
        },
        "hooks.samples.prompts",
        "reward eye cannot score",
    ),
    (
        "unread prompts",
        {
            "objective": {"name": "diffusion_dpo"},
            "rewards": {},
            "sampling": {},
            "data": {"name": "preferences", "pairs": "new", "make": {"prompts": UNREAD, "rewards": {"gold": {}}}},
        },
        "data.make.prompts",
        "reward gold cannot score",
    ),
]


def changed(overrides: dict[str, Any]) -> dict[str, Any]:
    recipe = yaml.safe_load(yaml.safe_dump(GOOD))
    for dotted, value in overrides.items():
        *blocks, last = dotted.split(".")
        tree = recipe
        for key in blocks:
            tree = tree.setdefault(key, {})
        tree[last] = value
    return recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin1.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "prompts.csv").write_text("a,b\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "overrides", "key", "fix"), WRONG, ids=[f"{kind}-{i}" for i, (kind, *_) in enumerate(WRONG)]
)
def test_a_wrong_recipe(kind, overrides, key, fix, here):
    (here / "mine.yaml").write_text(yaml.safe_dump(changed(overrides)))
    before = sorted(here.iterdir())
    result = CliRunner().invoke(app, ["train", "mine.yaml"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("mine.yaml:") and f": {key}: " in line and fix in line, line
    assert "Traceback" not in result.output
    assert sorted(here.iterdir()) == before, "nothing is left behind"


def test_there_are_three_of_each_kind_and_the_good_one_is_good(here):
    kinds = [kind for kind, *_ in WRONG]
    assert min(kinds.count(kind) for kind in kinds) >= 3

    load_recipe(GOOD)
    assert not (here / "the_run").exists()


def test_a_mistake_that_only_building_finds_leaves_no_folder_either(here):
    """A folder that is no pipeline, and a reward whose checkpoint is not there: the recipe itself is fine."""
    (here / "folder").mkdir()
    (here / "mine.yaml").write_text(yaml.safe_dump(changed({"model.checkpoint": "./folder"})))
    result = CliRunner().invoke(app, ["train", "mine.yaml"])
    assert result.exit_code == 2 and "model.checkpoint" in result.stderr and "model_index.json" in result.stderr
    assert not (here / "the_run").exists()


def test_prompts_that_are_brought_are_read_before_anything_is_trained(here):
    """A table's column, which the recipe does not hold: the folder is not made, nor is anything measured."""
    (here / "prompts.csv").write_text("text\na red circle\na cat\n")
    changes = ["data.prompts=prompts.csv", "data.columns={prompt: text}", "output=the_run"]
    result = CliRunner().invoke(app, ["train", "draft/shapes", *changes])
    assert result.exit_code == 2, result.output
    said = "data: reward eye cannot score all of them, first prompt 2 of 2: caption 'a cat'"
    assert result.stderr.startswith(said), result.stderr
    assert not (here / "the_run").exists()


@pytest.mark.parametrize("kind", ["function", "pairs"])
def test_what_is_wrong_beside_the_model_is_said_before_it_loads(here, monkeypatch, kind):
    """A function that averages the batch, and a wrong line of pairs: no model is built, and no folder made."""
    monkeypatch.setattr("align.run._Session._policy", lambda self: pytest.fail("the model was built"))
    (here / "mine.py").write_text("def mean(images, prompts):\n    return images.mean()\n")
    (here / "pairs").mkdir()
    (here / "pairs" / "pairs.jsonl").write_text('{"prompt": "a", "winner": "x.png"}\n')
    function = ["draft/shapes", "rewards={mean: {name: python, function: 'mine.py:mean'}}", "output=the_run"]
    pairs = ["diffusion_dpo/shapes", "data={name: preferences, pairs: pairs}", "output=the_run"]
    result = CliRunner().invoke(app, ["train", *(function if kind == "function" else pairs)])
    assert result.exit_code == 2, result.output
    said = {"function": "reward mean returned a scalar", "pairs": "pairs/pairs.jsonl: line 1 needs text"}
    assert said[kind] in result.stderr, result.stderr
    planned = CliRunner().invoke(app, ["train", *(function if kind == "function" else pairs), "--dry-run"])
    assert planned.exit_code == 2 and said[kind] in planned.stderr, "nor does a plan pass it over"
    assert not (here / "the_run").exists()


def test_a_reward_that_is_only_watched_stands_beside_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewards = {"brightness": {"weight": 0}, "sharpness": {}}
    assert load_recipe("draft/shapes", {"rewards": rewards}).rewards["brightness"].weight == 0

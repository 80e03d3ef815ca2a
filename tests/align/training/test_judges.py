"""Judges of the user's own are tried before anything is loaded: of the report, a hook, align evaluate, a plan."""

import pytest
from typer.testing import CliRunner

import align
from align.commands.app import app
from align.config import load_recipe
from align.plan import plan
from rewards._errors import RewardError

BROKEN = "def judge(images, prompts):\n    return images.mean()\n"
PLAIN = "import torch\n\ndef judge(images, prompts):\n    return torch.from_numpy(images.numpy()).mean((1, 2, 3))\n"


@pytest.fixture
def module(tmp_path):
    def write(text):
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:judge"

    return write


def recipe(tmp_path, place, function):
    watch = {
        "prompts": "shapes:select",
        "num_prompts": 4,
        "rewards": {"mine": {"name": "python", "function": function}},
    }
    hooks = {"panel": {**watch, "every": 2}} if place == "hooks" else {}
    changes = {"hooks": hooks, "evaluate": watch if place == "evaluate" else None, "output": str(tmp_path / "run")}
    return load_recipe("draft/shapes", {**changes, "train.num_updates": 2})


@pytest.mark.parametrize("place", ["hooks", "evaluate"])
def test_a_broken_judge_is_found_before_the_model_is_loaded(tmp_path, module, place, capsys):
    loaded = recipe(tmp_path, place, module(BROKEN))
    for act in (align.train, plan):
        with pytest.raises(RewardError, match="reward mine returned a scalar"):
            act(loaded)
    assert "loads" not in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_judge_needs_no_gradient(tmp_path, module):
    assert plan(recipe(tmp_path, "evaluate", module(PLAIN)))


def test_align_evaluate_tries_it_before_it_draws(tmp_path, module):
    arguments = ["evaluate", "base", "--recipe", "draft/shapes", "-n", "4", "-o", str(tmp_path / "out")]
    arguments += ["--reward", "mine=python", "--set", f"mine.function={module(BROKEN)}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "returned a scalar" in done.output, done.output
    assert not list((tmp_path / "out").rglob("*.png"))

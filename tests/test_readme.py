"""Every code block of the README runs."""

import re
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

import align
from align.config import load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.strip().split("#")[0].strip() for line in re.findall(r"^    (align .*)$", README, re.MULTILINE)]
SMALL = {"train.num_updates": 2, "evaluate.num_prompts": 8, "evaluate.num_pictures": 4, "hooks": {}}


def block(language: str, has: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and has in text]
    assert len(found) == 1, f"{len(found)} {language} blocks with {has!r}"
    return found[0]


def test_every_block_is_tested_here():
    assert [kind for kind, _ in BLOCKS] == ["yaml", "python", "python"]


def test_the_recipe_is_whole():
    recipe = load_recipe(yaml.safe_load(block("yaml", "objective:")))
    assert recipe.sampling.last_k == 1


def test_the_python_block_trains_and_draws(tmp_path, monkeypatch):
    train = align.train

    def small(recipe: str, **settings: Any):
        assert settings["train.num_updates"] == 40
        return train(recipe, **settings | SMALL | {"output": str(tmp_path / "run")})

    monkeypatch.setattr(align, "train", small)
    names: dict[str, Any] = {}
    exec(block("python", "align.train"), names)
    assert [record["step"] for record in names["run"].metrics if "reward/total" in record] == [1, 2]


def test_ones_own_reward_trains(tmp_path, monkeypatch):
    from align.cli import app

    (tmp_path / "my_rewards.py").write_text(block("python", "def warmth"))
    monkeypatch.chdir(tmp_path)
    command = next(c for c in COMMANDS if "warmth" in c)
    recipe, override = re.fullmatch(r"align train (\S+) '(.*)'", command).groups()  # type: ignore[union-attr]
    small = [f"{key}={value}" for key, value in SMALL.items()]
    done = CliRunner().invoke(app, ["train", recipe, override, *small, "output=run"])
    assert done.exit_code == 0, done.output
    assert "warmth" in done.output


def test_the_recipes_are_listed():
    from align.cli import app

    assert "align recipes" in COMMANDS
    done = CliRunner().invoke(app, ["recipes"])
    assert done.exit_code == 0
    for recipe in (Path(__file__).parents[1] / "recipes" / "draft").glob("*.yaml"):
        assert f"draft/{recipe.stem}" in done.output

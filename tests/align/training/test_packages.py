"""Packages that a recipe needs and that are not installed: refused before anything is loaded, said by a plan."""

import importlib.util

import pytest
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe
from align.errors import UserError
from align.training import packages

SETTINGS = ["optim.algorithm=adamw8bit", "model.quantize=nf4"]


@pytest.fixture
def bare(monkeypatch):
    """A machine without the packages that are extras."""
    find = importlib.util.find_spec
    extras = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in extras else find(name, *more))


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_not_installed_is_refused_with_what_to_do(bare, setting):
    with pytest.raises(UserError) as found:
        packages.refuse(load_recipe("draft/shapes", [setting]))
    said = str(found.value)
    assert said.startswith(f"{setting}: ") and "bitsandbytes" in said and 'pip install "diffalign[bnb]"' in said
    assert "\n" not in said


def test_what_needs_no_package_is_not_refused(bare):
    packages.refuse(load_recipe("draft/shapes"))
    with pytest.raises(UserError) as found:
        packages.refuse(load_recipe("draft/shapes", SETTINGS))
    assert len(str(found.value).splitlines()) == 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_plan_says_it_and_is_made_all_the_same(bare, setting):
    done = CliRunner().invoke(app, ["train", "draft/shapes", setting, "--dry-run"])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("not here")]
    assert done.exit_code == 0 and setting in line and "memory" in done.stdout
    plain = CliRunner().invoke(app, ["train", "draft/shapes", "--dry-run"])
    assert "not here" not in plain.stdout

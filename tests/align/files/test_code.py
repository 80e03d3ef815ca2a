"""A user's own code in a recipe: found from anywhere, and the run's copy goes before another file of the same name."""

from pathlib import Path

import pytest

from align.config import load_recipe
from align.data._prompt_files import KINDS as PROMPT_FILES
from align.errors import UserError
from align.files import code

TREE = {
    "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
    "objective": "draft",
    "data": {"name": "prompts", "prompts": ["a red circle"]},
    "rewards": {"own": {"name": "python", "function": "my_rewards.py:bright"}},
}
BRIGHT = "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"
DARK = "def bright(images, prompts):\n    return -images.mean((1, 2, 3))\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with the file, a recipe that names it, and a run's folder as training leaves it."""
    (home := tmp_path / "home").mkdir()
    (home / "my_rewards.py").write_text(BRIGHT)
    monkeypatch.chdir(home)
    recipe = load_recipe({**TREE, "output": "runs/a"})
    (home / "mine.yaml").write_text(recipe.yaml())
    code.keep(recipe.dump(), Path("runs/a"))
    (home / "runs/a/recipe.yaml").write_text(recipe.yaml())
    return home


def function(recipe):
    return recipe.rewards["own"].function


def test_a_path_that_leads_somewhere_stays_as_it_is(home):
    assert function(load_recipe("mine.yaml")) == function(load_recipe("runs/a")) == "my_rewards.py:bright"


def test_from_elsewhere_it_is_the_runs_copy_and_beside_the_recipe(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert function(load_recipe("home/runs/a")) == "home/runs/a/code/my_rewards.py:bright"
    assert function(load_recipe("home/mine.yaml")) == "home/my_rewards.py:bright"
    (home / "my_rewards.py").unlink()
    assert function(load_recipe("home/runs/a"))  # the copy is enough
    with pytest.raises(UserError, match=r"rewards\.own\.function: .*there is no file"):
        load_recipe("home/mine.yaml")


def test_another_file_of_the_same_name_is_not_taken_for_the_runs(home, tmp_path, monkeypatch):
    (other := tmp_path / "other").mkdir()
    (other / "my_rewards.py").write_text(DARK)
    monkeypatch.chdir(other)
    assert Path(function(load_recipe("../home/runs/a")).partition(":")[0]).read_text() == BRIGHT
    (home / "my_rewards.py").write_text(DARK)  # edited since
    monkeypatch.chdir(home)
    assert function(load_recipe("runs/a")) == "runs/a/code/my_rewards.py:bright"


def test_the_runs_recipe_says_it_as_it_was_said(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = load_recipe("home/runs/a").dump()
    assert code.told(tree)["rewards"]["own"]["function"] == "my_rewards.py:bright"
    code.keep(tree, tmp_path / "home/runs/a")  # going on: its own copy
    code.keep(tree, tmp_path / "next")
    assert (tmp_path / "next/code/my_rewards.py").read_text() == BRIGHT


def test_files_of_one_name_in_two_folders_are_two_files(tmp_path, monkeypatch):
    (tmp_path / "work/lib").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    places = {
        "r.py": BRIGHT,
        "lib/r.py": DARK,
        "../r.py": BRIGHT + "# up\n",
        str(tmp_path / "abs.py"): DARK + "# abs\n",
    }
    for place, text in places.items():
        Path(place).write_text(text)
    tree = {"rewards": [f"{place}:bright" for place in places]}
    code.keep(tree, Path("run"))
    for place in places:
        Path(place).unlink()  # what is left is the run
    (tmp_path / "work/run/recipe.yaml").write_text("")
    found = code.located(tree, Path("run/recipe.yaml"))["rewards"]
    assert [Path(one.partition(":")[0]).read_text() for one in found] == list(places.values())
    assert code.named(found) == code.named(tree["rewards"])


def test_prompts_of_ones_own_go_with_the_run(tmp_path, monkeypatch):
    """Found from elsewhere, named as they were where they are there, and no other text under another key is taken."""
    (home := tmp_path / "home").mkdir()
    (home / "mine.txt").write_text("a red circle\na blue star\n")
    monkeypatch.chdir(home)
    hooks = {"samples": {"prompts": "mine.txt", "every": 1}}
    tree = {**TREE, "rewards": {"eye": {}}, "data": {"name": "prompts", "prompts": "mine.txt"}, "hooks": hooks}
    recipe = load_recipe({**tree, "output": "runs/a"})
    code.keep(recipe.dump(), Path("runs/a"))
    (home / "runs/a/recipe.yaml").write_text(recipe.yaml())
    assert (home / "runs/a/code/mine.txt").read_text() == "a red circle\na blue star\n"
    assert load_recipe("runs/a").data.prompts == "mine.txt" and code.own(recipe.dump()) == ["mine.txt"]
    (home / "mine.txt").unlink()
    kept = load_recipe("runs/a")
    assert kept.data.prompts == kept.hooks["samples"].prompts == "runs/a/code/mine.txt"
    assert code.told(kept.dump())["data"]["prompts"] == "mine.txt"
    monkeypatch.chdir(tmp_path)
    assert load_recipe("home/runs/a").data.prompts == "home/runs/a/code/mine.txt"
    assert code.own({"prompts": "shapes:train", "pairs": "pairs.jsonl", "text": "a.txt"}) == []


@pytest.mark.parametrize("ending", PROMPT_FILES)
def test_a_run_keeps_prompts_of_every_kind_of_file(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    Path(f"mine{ending}").write_text("x")
    code.keep({"data": {"prompts": f"mine{ending}"}}, tmp_path / "run")
    assert (tmp_path / "run" / "code" / f"mine{ending}").is_file()


def test_a_module_by_its_name_is_not_kept(tmp_path, monkeypatch):
    """As docs/start/first_run.md says."""
    monkeypatch.chdir(tmp_path)
    Path("r.py").write_text(BRIGHT)
    code.keep({"function": "r:bright"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()

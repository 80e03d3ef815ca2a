"""Recipes: YAML and overrides to one frozen tree and back."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from align import recipes
from align.config import ALWAYS, Recipe, _chooser, json_schema, load_recipe
from align.errors import UserError
from align.source import Source

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate")

BASE = {
    "model": {"name": "sd", "checkpoint": "owner/name"},
    "objective": "draft",
    "data": {"name": "prompts", "prompts": ["a"]},
    "rewards": {"brightness": {}},
}

USER_REWARD = """
from typing import Literal
from rewards import Reward, RewardConfig

class SharpConfig(RewardConfig):
    power: float = 2.0

class Sharp(Reward):
    Config = SharpConfig
"""


def load(**blocks) -> Recipe:
    return load_recipe({**BASE, **blocks})


@cache
def schema():
    """Checked once: it is large."""
    kind = jsonschema.validators.validator_for(json_schema())
    kind.check_schema(json_schema())
    return kind(json_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_loads_dumps_fits_its_schema_and_is_short(path):
    recipe = load_recipe(path)
    assert load_recipe(recipe.dump()) == recipe
    assert load_recipe(json.loads(json.dumps(recipe.dump()))) == recipe
    text = path.read_text(encoding="utf-8")
    schema().validate(Source.read(path).tree)
    schema().validate(recipe.dump())
    assert len(text.splitlines()) <= 30
    assert text.startswith("# "), "the first line says what the recipe is: `align recipes` shows it"


def test_the_resolved_recipe_survives_as_a_file(tmp_path):
    recipe = load(optim={"lr": 3e-5, "betas": [0.8, 0.99]}, hooks={"progress": False}, output="runs/x")
    (tmp_path / "recipe.yaml").write_text(recipe.yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    moved = recipe.model_copy(update={"output": str(tmp_path)})
    assert load_recipe(tmp_path) == moved, "a run's folder is a recipe too, of that folder"


def test_a_dotted_reward_survives_the_round_trip(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_here.py").write_text(USER_REWARD)
    monkeypatch.chdir(tmp_path)
    for path in ("my_rewards_here:Sharp", "my_rewards_here.py:Sharp"):
        recipe = load(rewards={"sharp": {"name": path, "power": 3}})
        assert recipe.dump()["rewards"]["sharp"].items() >= {"weight": 1.0, "power": 3.0, "name": path}.items()
        assert load_recipe(recipe.dump()) == recipe
        schema().validate(recipe.dump())


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().optim.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "0.1e-3", "+1e-4", ".0001"])
def test_numbers_as_people_write_them(text, tmp_path):
    assert load_recipe(BASE, [f"optim.lr={text}"]).optim.lr == pytest.approx(1e-4)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(BASE) + f"optim: {{lr: {text}}}\n")
    assert load_recipe(tmp_path / "r.yaml").optim.lr == pytest.approx(1e-4)


def test_no_is_text_and_numbers_stay_whole(tmp_path):
    recipe = load_recipe(BASE, ["train.mixed_precision=no", "train.num_updates=12", "objective.target=null"])
    assert recipe.train.mixed_precision == "no" and recipe.train.num_updates == 12
    (tmp_path / "r.yaml").write_text("a: 2024\nb: 0x10\nc: 'no'\nd: off\ne: true\nf: 1_e\n")
    assert Source.read(tmp_path / "r.yaml").tree == {"a": 2024, "b": 16, "c": "no", "d": "off", "e": True, "f": "1_e"}


def test_overrides_from_the_command_line_and_from_python():
    before = json.dumps(BASE)
    by_text = load_recipe(BASE, ["objective.num_noises=2", "adapter.rank=4", "rewards.brightness.weight=-1"])
    by_value = load_recipe(
        BASE, {"objective.num_noises": 2, "adapter.rank": 4, "rewards": {"brightness": {"weight": -1}}}
    )
    assert by_text == by_value
    assert by_text.objective.model_dump()["num_noises"] == 2, "the short form `objective: draft` takes keys too"
    assert json.dumps(BASE) == before, "the mapping given is left as it was"


def test_labels_name_rewards_and_hooks_end_with_those_of_every_run():
    recipe = load(
        rewards={"brightness": None, "dark": {"name": "brightness", "weight": -0.5}},
        hooks={"metrics": {"project": "mine"}, "samples": {"prompts": ["a"]}},
    )
    assert [(label, reward.weight) for label, reward in recipe.rewards.items()] == [("brightness", 1), ("dark", -0.5)]
    assert list(recipe.hooks) == ["samples", *ALWAYS]
    assert recipe.hooks["metrics"].model_dump()["project"] == "mine"
    without = load(hooks={"progress": False})
    assert list(without.hooks) == ["metrics"] and load_recipe(without.dump()) == without


def test_where_recipes_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.find("draft/shapes") == ROOT / "recipes" / "draft" / "shapes.yaml"
    own = tmp_path / "recipes" / "draft" / "shapes.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(yaml.safe_dump(BASE))
    assert recipes.find("draft/shapes").resolve() == own, "the working directory comes first"
    assert recipes.find("recipes/draft/shapes.yaml").resolve() == own
    assert load_recipe("draft/shapes").output == "runs/draft-shapes"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(BASE))
    assert load_recipe("mine").output == "runs/mine"
    with pytest.raises(UserError, match='Did you mean "draft/shapes"'):
        recipes.find("draft/shape")


def test_a_file_that_is_not_there_is_answered_with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    for name, meant in (("mine.yml", True), ("a.yaml", False), ("foo.yaml", False)):
        with pytest.raises(UserError) as said:
            recipes.find(name)
        assert ('Did you mean "mine.yaml"?' in str(said.value)) == meant
        assert meant or "Did you mean" not in str(said.value)


def test_every_problem_is_said_at_once_with_its_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: {name: sd, checkpoint: owner/name}\n"
        "objective: {name: draft, num_noise: 2}\n"
        "data: {name: prompts, prompts: [a]}\n"
        "rewards:\n"
        "  brightness:\n"
        "    weight: heavy\n"
        "  judge: {}\n"
        "adapter:\n"
        "  rank: 0\n"
        "trian: {num_updates: 3}\n"
        "sampling: {num_steps: 4, last_k: 8}\n"
        "output: bad.yaml/run\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(path, ["optim.lr=fast", "train.batch_size=0", "otpim.lr=3"])
    said = {line.split(": ")[1]: line for line in str(caught.value).splitlines()}
    assert said.keys() == {
        "objective.num_noise",
        "rewards.brightness.weight",
        "adapter.rank",
        "trian",
        "otpim",
        "sampling.last_k",
        "optim.lr",
        "train.batch_size",
    }
    assert said["objective.num_noise"].startswith(f"{path}:2: ") and 'mean "num_noises"' in said["objective.num_noise"]
    assert said["rewards.brightness.weight"].startswith(f"{path}:6: ")
    assert said["adapter.rank"].startswith(f"{path}:9: ") and "Set rank >= 1" in said["adapter.rank"]
    assert 'Did you mean "train"' in said["trian"]
    assert "Set last_k <= 4" in said["sampling.last_k"]
    assert said["optim.lr"].startswith("command line: ") and said["otpim"].startswith("command line: ")


def test_mistakes_in_the_file_itself(tmp_path):
    for text, said in (
        ("model: [1\n", "bad.yaml:2: not valid YAML"),
        ("model: x\nmodel: y\n", "bad.yaml:2: not valid YAML: the key model is given twice"),
        ("- a\n", "a recipe is a mapping"),
        ("a: \xff", r"byte 3 .line 1. is not UTF-8"),
    ):
        (tmp_path / "bad.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=said):
            load_recipe(tmp_path / "bad.yaml")
    for override in ("optim.lr", "=3", "optim..lr=3", "optim.lr=[1"):
        with pytest.raises(UserError, match="override"):
            load_recipe(BASE, [override])
    with pytest.raises(UserError, match="has no keys inside"):
        load_recipe({**BASE, "output": 3}, ["output.x=1"])


def test_a_finished_run_is_read_though_its_prompts_are_gone(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n")
    recipe = load(data={"name": "prompts", "prompts": str(tmp_path / "prompts.txt")})
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(UserError, match=r"data\.prompts"):
        load_recipe(recipe.dump())
    assert load_recipe(recipe.dump(), on_disk=False) == recipe


def test_one_hook_chooses_the_adapter():
    """Of a guard and a panel's best each would say that its adapter is the run's."""
    from align.hooks.guard import GuardConfig
    from align.hooks.panel import PanelConfig

    rewards: Any = {"jpeg": {}}
    guard = GuardConfig(prompts=["a"], rewards=rewards)
    best, plain = (PanelConfig(prompts=["a"], rewards=rewards, best=label) for label in ("jpeg", None))
    assert not list(_chooser({"hooks": {"guard": guard, "panel": plain}})) and not list(_chooser({}))
    ((key, text),) = _chooser({"hooks": {"guard": guard, "panel": best}})
    assert key == "hooks.panel.best" and "hooks.guard chooses it already" in text
    ((key, _),) = _chooser({"hooks": {"panel": best, "other": best}})
    assert key == "hooks.other.best"
    ((key, _),) = _chooser({"hooks": {"panel": best, "guard": guard}})
    assert key == "hooks.guard"

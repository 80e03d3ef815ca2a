"""The command line takes plain text as plain text, and a run is the folder that was named."""

import shutil

import pytest

from align.config import load_recipe
from align.errors import UserError
from align.evaluation.score_inputs import reward_configs
from align.sampling import SamplingConfig
from align.source import Source

BASE = {
    "model": {"name": "sd", "checkpoint": "embedded:shapes-sd"},
    "objective": "draft",
    "data": {"name": "prompts", "prompts": ["a red circle"]},
    "rewards": {"brightness": {}},
}
TEXTS = [
    "2026-11-27",
    "007",
    "runs/exp #3",
    "7",
    "1e3",
    ".5",
    "true",
    "null",
    "12:30",
    "0x1F",
    "yes",
    "a: b",
    "- x",
    "!x",
]
TEXTS += [
    "&a",
    "*a",
    "a, b",
    "50%",
    "@x",
    "|",
    ">",
    "'tis",
    'say "hi" now',
    "1_000",
    "runs/größe 猫",
    "x=y",
    "~",
    "? x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_folder_may_be_called_anything(text):
    assert load_recipe(BASE, [f"output={text}"], on_disk=False).output == text
    assert reward_configs(["clip"], [f"clip.model={text}"])["clip"].model == text


def test_the_same_words_are_numbers_where_numbers_are_wanted(tmp_path):
    said = ["train.seed=007", "optim.lr=1e-4", "train.num_updates=1_0", "adapter.rslora=true", "adapter.init=null"]
    recipe = load_recipe(BASE, said, on_disk=False)
    assert (recipe.train.seed, recipe.optim.lr, recipe.train.num_updates) == (7, 1e-4, 10)
    assert recipe.adapter.rslora is True and recipe.adapter.init is None
    (tmp_path / "r.yaml").write_text("output: 2026-11-27 # a comment\ntrain: {seed: 010}\n")
    assert Source.read(tmp_path / "r.yaml").tree == {"output": "2026-11-27", "train": {"seed": 10}}


def test_lists_mappings_and_quotes_are_yaml_still():
    recipe = load_recipe(BASE, ["data.prompts=[007, a cat, 'x, y', 2026-11-27]", 'output="a #b"'], on_disk=False)
    assert recipe.data.prompts == ["007", "a cat", "x, y", "2026-11-27"] and recipe.output == "a #b"
    assert list(load_recipe(BASE, ["rewards={jpeg: {quality: 50}}"], on_disk=False).rewards) == ["jpeg"]
    with pytest.raises(UserError, match="is not valid YAML") as caught:
        load_recipe(BASE, ["data.prompts=[a"], on_disk=False)
    assert "\n" not in str(caught.value)


def test_a_run_is_the_folder_that_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "runs" / "m"
    (old / "checkpoints").mkdir(parents=True)
    (old / "recipe.yaml").write_text(load_recipe(BASE, {"output": "runs/m"}).yaml())
    shutil.copytree(old, tmp_path / "copy")
    shutil.move(old, tmp_path / "archive" / "m")
    assert load_recipe("archive/m").output == "archive/m"
    assert load_recipe(tmp_path / "copy").output == str(tmp_path / "copy")
    assert load_recipe("copy/recipe.yaml").output == "copy"
    assert load_recipe("archive/m", ["output=elsewhere"]).output == "elsewhere"
    shutil.copy("copy/recipe.yaml", "mine.yaml")
    assert load_recipe("mine.yaml").output == "runs/m", "a recipe that lies by itself says where it writes"


def test_rules_of_training_do_not_hold_where_nothing_is_trained():
    drawn = load_recipe(BASE, ["sampling.num_steps=2", "sampling.last_k=5"], on_disk=False)
    assert drawn.sampling.num_steps == 2 and drawn.sampling.grad_policy() is not None
    with pytest.raises(UserError, match=r"sampling.last_k: 5 exceeds num_steps=2"):
        load_recipe(BASE, ["sampling.num_steps=2", "sampling.last_k=5"])
    with pytest.raises(ValueError, match="exceeds num_steps"):
        SamplingConfig(num_steps=2, last_k=5)
    with pytest.raises(UserError, match="guidance_interval"):
        load_recipe(BASE, ["sampling.guidance_interval=[1, 0]"], on_disk=False)


def test_a_key_of_another_block_is_told_by_that_block():
    with pytest.raises(UserError, match=r"objective\.last_kk: unknown key\. Did you mean sampling\.last_k\?"):
        load_recipe(BASE, ["objective.last_kk=3"])
    with pytest.raises(UserError, match=r"lr: unknown key\. Did you mean optim\.lr\?"):
        load_recipe(BASE, ["lr=3"])

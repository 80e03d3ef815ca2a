"""The folder of a noise search is no folder of something else."""

import os

import pytest

from align.config import load_recipe
from align.errors import UserError
from align.noise.files import fingerprint, not_of_another
from align.noise.run import Session


@pytest.mark.parametrize("said", ["objective: draft", "objective: {name: nft, num_draws: 3}", "model: sd", "- a\n- {"])
def test_another_recipe_is_not_written_over(tmp_path, said):
    (tmp_path / "recipe.yaml").write_text(said)
    with pytest.raises(UserError, match=r"--output .*: the recipe.yaml there is no noise search's.*/noise\."):
        Session(None, tmp_path, print)  # before anything is loaded
    assert (tmp_path / "recipe.yaml").read_text() == said


@pytest.mark.parametrize("said", ["objective: reno", "objective: {name: reno, prior: radial}"])
def test_its_own_is(tmp_path, said):
    not_of_another(tmp_path)
    (tmp_path / "recipe.yaml").write_text(said)
    not_of_another(tmp_path)


def test_nor_is_that_of_best_of(tmp_path):
    (tmp_path / "recipe.yaml").write_text("objective: draft")
    (tmp_path / "images.jsonl").write_text("")
    not_of_another(tmp_path)


def test_the_files_behind_the_settings_are_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "mine.py"
    code.write_text(
        "from typing import Literal\nfrom rewards import Reward, RewardConfig\n\n"
        "class LightConfig(RewardConfig):\n    name: Literal['light'] = 'light'\n\n"
        "class Light(Reward):\n    Config = LightConfig\n"
    )
    recipe = load_recipe("reno/shapes", {"rewards": {"light": {"name": f"{code}:Light"}}}, on_disk=False)
    before = fingerprint(recipe)
    (tmp_path / "reno").mkdir()
    (tmp_path / "reno" / "0000-a.safetensors").write_bytes(b"what the search itself writes")
    assert fingerprint(recipe) == before
    os.utime(code, ns=(0, 0))
    assert fingerprint(recipe) != before

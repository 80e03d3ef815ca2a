"""The folder of a noise search is no folder of something else."""

import pytest

from align.errors import UserError
from align.noise.files import not_of_another
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

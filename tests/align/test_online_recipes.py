"""Every recipe of online RL loads, and its update is rehearsed: on the embedded model as it is, for published models on
a tiny one of their family, with the same objective, groups, steps and guidance."""

import pytest
from recipe_toys import tiny

from align import recipes
from align.config import load_recipe
from align.plan import plan, rehearse

METHODS = ("ddpo", "grpo", "nft", "awm", "dgpo")
RECIPES = {name: path for name, path in recipes.names().items() if name.split("/")[0] in METHODS}


@pytest.mark.parametrize("name", RECIPES)
def test_an_update_is_rehearsed(name, tmp_path):
    recipe = load_recipe(name, {"output": str(tmp_path / "run")})
    if not name.endswith("/shapes"):
        changed = tiny(recipe.model.name, tmp_path / "model") | {"sampling.image_size": None, "output": str(tmp_path)}
        changed |= {"evaluate.sampling.image_size": None} if recipe.evaluate.sampling else {}
        recipe = load_recipe(name, changed)
    found, train, data = rehearse(recipe), recipe.train, recipe.data
    guided = 1 if recipe.sampling.guidance_scale == 1 else 2
    assert found.drawing == train.batch_size * recipe.sampling.num_calls * guided
    rows = found.total // train.batch_size
    trained = getattr(recipe.objective, "num_draws", data.window.size if data.window.start != "all" else None)
    assert rows == trained if trained else rows >= recipe.sampling.num_steps - 1
    assert found.rows == min(train.micro_batch_size or found.total, found.total)
    assert found.calls.backward == found.rows * guided and found.peak > 0
    assert recipe.optim.eps == 1e-15, "log-probabilities that are means make gradients tiny"


def test_there_are_recipes_of_every_method_and_family():
    assert {name.split("/")[0] for name in RECIPES} == set(METHODS)
    families = {load_recipe(name, on_disk=False).model.name for name in RECIPES}
    assert families >= {"auto", "sd", "sdxl", "sd3", "flux2", "z_image", "krea2"}


def test_the_plan_counts_the_images_that_are_drawn(tmp_path):
    """64 images of 6 steps and 2 trained steps of each: 384 + 128 rows forward, 128 of them with gradient."""
    text = plan(load_recipe("grpo/shapes", {"output": str(tmp_path / "run")}))
    assert "512 forward, of which 128 with gradient" in text


@pytest.mark.parametrize("name", METHODS)
def test_memory_is_that_of_one_micro_batch_whatever_the_steps(name, tmp_path):
    """Neither sampling steps nor trained steps nor looks are in the graph together."""

    def peak(num_steps: int) -> int:
        changed = {"output": str(tmp_path), "sampling.num_steps": num_steps, "train.micro_batch_size": 8}
        return rehearse(load_recipe(f"{name}/shapes", changed)).peak

    few, many = peak(5), peak(20)
    assert many == pytest.approx(few, rel=0.02)

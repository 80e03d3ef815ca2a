"""Every recipe on labels, on trajectories and on the policy's own pairs loads, and its update is rehearsed: on the
embedded model as it is, for published models on a tiny one of their family."""

import pytest
from recipe_toys import tiny

from align import recipes
from align.config import load_recipe
from align.plan import rehearse

METHODS = ("kto", "dro", "d3po", "spo", "tailorpo")
NAMES = [n for n in recipes.names() if n.split("/")[0] in METHODS or n.endswith("_online")]


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_rehearsed(name, tmp_path):
    changes = {"output": str(tmp_path / "run")}
    family = load_recipe(name, changes, on_disk=False).model.name
    if "shapes" not in name:
        changes |= tiny(family, tmp_path / "model")
    recipe = load_recipe(name, changes)
    found, train = rehearse(recipe), recipe.train
    assert found.peak > 0 and found.calls.backward > 0 and found.trainable > 0
    assert found.rows == min(train.micro_batch_size or found.total, found.total)
    guided = 1 if recipe.sampling.guidance_scale == 1 else 2
    if recipe.data.name in ("labels", "preferences"):  # each of b images, of 2 b of pairs: policy and reference
        images = found.rows * (2 if recipe.data.name == "preferences" else 1)
        assert (found.total, found.drawing) == (train.batch_size, 0)
        ahead = 1 if recipe.objective.name == "kto" else 0  # the policy's pass for the baseline
        assert (found.calls.forward, found.calls.backward) == ((2 + ahead) * images, images)
    elif recipe.data.name == "online_pairs":
        assert found.drawing == train.batch_size * recipe.data.num_images * recipe.sampling.num_calls * guided
    elif recipe.data.name == "rollouts":
        assert found.total == train.batch_size, "an update is a whole rollout, and the next one is of the new policy"
    elif recipe.data.name == "groups":
        assert recipe.data.shared_noise and recipe.optim.eps == 1e-15
        assert found.total >= train.batch_size * (recipe.sampling.num_steps - 1)


def test_each_method_has_an_embedded_recipe_and_a_published_models():
    for method in ("kto", "dro", "d3po", "tailorpo"):
        own = [name.split("/")[1] for name in NAMES if name.startswith(f"{method}/")]
        assert "shapes" in own and "sd15" in own
    assert {"diffusion_dpo/shapes_online", "diffusion_dpo/sd15_online"} <= set(NAMES)


def test_no_memory_is_for_the_network_of_the_reference(tmp_path):
    """Two roles are one base and one adapter: bytes of weights do not double."""
    changes = {"output": str(tmp_path)}
    two, one = (rehearse(load_recipe(name, changes)) for name in ("kto/shapes", "draft/shapes"))
    assert two.weights == one.weights and two.trainable == one.trainable

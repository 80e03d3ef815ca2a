"""Every recipe of the methods that are one gradient topology each is rehearsed: on the embedded model as it is, for
published models on a tiny one of their family, with the same objective and guidance, and the same steps but where
those are many."""

import pytest
from recipe_toys import tiny

from align import recipes
from align.config import load_recipe
from align.plan import Rehearsal, rehearse

CALLS = {
    "adjusted_dft/shapes": 6,
    "adjusted_dft/sd15": 8,
    "leapalign/shapes": 2,
    "leapalign/flux": 2,
    "flowbp/shapes": 3,
    "flowbp/sd35": 3,
    "srpo/shapes": 1,
    "srpo/flux": 1,
    "fairness/shapes": 6,
    "fairness/sd15": 8,
    "unlearn/shapes": 1,
    "unlearn/sd15": 1,
    "soft_prompt/shapes": 3,
    "soft_prompt/sd15": 1,
    "adjoint_matching/shapes": 4 + 8,
    "adjoint_matching/sd15": 4 + 5,
    "ode_regression/shapes": 4,
    "ode_regression/sd15": 4,
    "ode_regression/sdxl": 4,
    "tdm/shapes": 2,
    "tdm/shapes_flow": 2,
    "tdm/shapes_ode": 2,
    "tdm/sd15": 2,
    "tdm/sdxl": 2,
    "tdm/sd35": 2,
    "tdm/flux2_klein": 2,
    "tdm/z_image": 2,
    "diff_instruct/shapes": 2 + 3,
    "diff_instruct/sd15": 2 + 3,
    "diff_instruct/sdxl": 2 + 3,
    "tdm_r1/shapes": 3,
    "tdm_r1/shapes_ode": 3,
    "tdm_r1/sd15": 3,
    "tdm_r1/sd35": 3,
}
"""Recipe -> network calls of a sample that carry gradient; guidance makes two rows of each, unless it acts in the
rollouts alone. Adjoint matching's adjoint passes back through the base, from the image to the first trained step. A
few-step student and what it learns with make one each, a regression one in each of the student's steps; Diff-
Instruct*'s score form passes guided reference and fake."""
FEW = {f"{name}/sd15": 8 for name in ("adjoint_matching", "adjusted_dft", "fairness", "unlearn")}
"""Recipe -> steps in place of its 21 to 50: each makes the same calls."""
UNGUIDED = ("adjoint_matching", "unlearn")
METHODS = sorted({name.split("/")[0] for name in CALLS})
RECIPES = {name: path for name, path in recipes.names().items() if name.split("/")[0] in METHODS}


def rehearsed(name: str, folder, **changes) -> Rehearsal:
    """The recipe's first micro-batch; of a published model's on a tiny one, at its own size."""
    changes = {"output": str(folder / "run"), "train.micro_batch_size": 2} | changes
    recipe = load_recipe(name, changes)
    if "/shapes" not in name:
        changes |= tiny(recipe.model.name, folder / "model") | {"sampling.image_size": None}
        changes |= {"sampling.num_steps": FEW[name]} if name in FEW else {}
        changes |= {"evaluate.sampling.image_size": None} if recipe.evaluate and recipe.evaluate.sampling else {}
        recipe = load_recipe(name, changes)
    return rehearse(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_an_update_is_rehearsed(name, tmp_path):
    found = rehearsed(name, tmp_path)
    assert found.rows == 2 and found.peak > 0
    guided = 1 if load_recipe(name).sampling.guidance_scale == 1 or name.startswith(UNGUIDED) else 2
    assert found.calls.backward == CALLS[name] * found.rows * guided


def test_every_method_has_an_embedded_recipe_and_one_of_a_published_model():
    for method in METHODS:
        own = [name for name in RECIPES if name.startswith(method + "/")]
        assert f"{method}/shapes" in own and len(own) >= 2, method


def test_a_kept_loss_and_a_critic_are_rehearsed_too(tmp_path):
    both = {"data.prompts": ["a star", "a circle"]}
    settings = {"objective.target": "adversarial", "objective.surgery": "pcgrad"}
    found = rehearsed("unlearn/shapes", tmp_path, **both, **settings)
    plain = rehearsed("unlearn/shapes", tmp_path, **both)
    assert found.calls.backward == plain.calls.backward == 2
    assert found.calls.forward > plain.calls.forward, "the critic's move draws its images again"
    assert found.trainable > plain.trainable

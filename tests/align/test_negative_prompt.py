"""sampling.negative_prompt: asked wherever guidance asks without the prompt, in every method, and refused elsewhere."""

import pytest
from run_toys import summary

import align
from align import recipes
from align.commands.sample import sample as draw
from align.commands.values import settings_among
from align.config import load_recipe
from align.errors import UserError
from align.models._text import CachedTextEncoder
from align.plan import rehearse
from align.share import card
from align.share.stock import Stock, stock

OWN = (
    "diffusion_dpo",
    "npo",
    "inversion_dpo",
    "kto",
    "dro",
    "unlearn",
    "tdm",
    "tdm_r1",
    "diff_instruct",
    "ode_regression",
)
"""Methods that do not sample in training by the recipe's block, or have a teacher's guidance of their own."""
DRAWN = ("awm", "dgpo", "nft")
"""Train without guidance on what `rollout` has drawn before."""
LEFT_OUT = (*OWN, *DRAWN, "spm")
RECIPES = [name for name in recipes.names() if name.endswith("/shapes") and name.split("/")[0] not in LEFT_OUT]


def asked(monkeypatch) -> list[str]:
    """What the unprompted branch is asked from here on, a word each time."""
    words: list[str] = []
    encode, negative = CachedTextEncoder.encode, CachedTextEncoder.negative

    def seen(self, prompts, grad=False):
        words.extend("nothing" for prompt in prompts if prompt == "")
        return encode(self, prompts, grad)

    monkeypatch.setattr(CachedTextEncoder, "encode", seen)
    monkeypatch.setattr(CachedTextEncoder, "negative", lambda self, p: words.append(p) or negative(self, p))
    return words


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_asks_it(name, tmp_path, monkeypatch):
    changes = {"output": str(tmp_path / "run"), "train.micro_batch_size": 2, "sampling.negative_prompt": "a star"}
    plain = load_recipe(name).sampling.how.plain
    changes |= {"sampling.guidance_scale": 2.0} if plain == 1 else {}
    words = asked(monkeypatch)
    rehearse(load_recipe(name, changes))
    assert words and set(words) == {"a star"}


@pytest.mark.parametrize("name", ["spo/shapes", "nft/shapes"])
def test_what_is_drawn_to_learn_from_asks_it_too(name, tmp_path, monkeypatch):
    """A branching rollout of its own, and one by `rollout`."""
    changes = {"sampling.negative_prompt": "a star", "sampling.num_steps": 3, "evaluate": None, "hooks": {}}
    changes |= {
        "sampling.guidance_scale": 2.0,
        "train.num_updates": 1,
        "train.batch_size": 4,
        "rewards": {"brightness": {}},
    }
    changes |= {"data.first_step": 0, "data.gap": 0.0} if name == "spo/shapes" else {"data.group_size": 2}
    words = asked(monkeypatch)
    align.train(name, **changes, output=str(tmp_path / "run"))
    assert words and set(words) == {"a star"}


def of_pictures(recipe="draft/sd15_aesthetic", **sampling):
    return load_recipe(recipe, {"sampling": {"num_steps": 5, "last_k": 1, **sampling}, "evaluate": None})


def test_it_needs_guidance_and_spm_has_no_place_for_it():
    with pytest.raises(UserError, match=r"sampling.negative_prompt: is set, and at guidance 1"):
        of_pictures(guidance_scale=1, negative_prompt="blurry")
    with pytest.raises(UserError, match="spm guides by the pairs' empty prompt"):
        load_recipe("spm/shapes", {"sampling.negative_prompt": "a star"})


def test_stock_diffusers_is_told_where_it_can_be():
    recipe = of_pictures(negative_prompt="blurry, dull")
    assert stock(recipe).call["negative_prompt"] == "blurry, dull"
    assert 'negative_prompt="blurry, dull"' in card.text(recipe, summary())
    assert "negative_prompt" not in stock(of_pictures()).call
    qwen = load_recipe("draft/qwen_image", {"sampling.negative_prompt": "blurry"}, on_disk=False)
    assert stock(qwen).call["negative_prompt"] == "blurry"
    klein = load_recipe(
        "nft/flux2_klein", {"sampling.negative_prompt": "dull", "sampling.guidance_scale": 4, "evaluate": None}
    )
    assert "negative_prompt" not in stock(klein).call
    assert any("away from 'dull'" in said for said in stock(klein).missing)


def test_several_prompts_are_each_drawn_away_from_it():
    """Stock pipelines refuse a list of prompts beside one negative prompt."""

    class Pipeline:
        def __call__(self, prompt=None, negative_prompt=None, num_inference_steps=50):
            return negative_prompt

    drawn = Stock(None, {}, {"negative_prompt": "dull"}).put_on(Pipeline())
    assert drawn("a cat") == "dull" and drawn(["a cat", "a dog"]) == ["dull", "dull"]
    assert drawn("a cat", negative_prompt="") == ""


def test_another_negative_prompt_draws_another_picture(tmp_path):
    images = [
        next(
            draw(
                "draft/shapes",
                ["a red circle"],
                [f"sampling.negative_prompt={said}", "sampling.guidance_scale=3"],
                output=tmp_path,
            )
        )
        for said in ("''", "a blue star", "a blue star")
    ]
    assert images[0].read_bytes() != images[1].read_bytes() and images[1] == images[2]


def test_the_command_line_has_an_option_for_it():
    assert settings_among(["a cat"], negative="blurry: dull")[1] == ['sampling.negative_prompt="blurry: dull"']

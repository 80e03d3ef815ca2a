"""How a student is drawn goes with it: in its file, its card, and where another recipe is named for its model."""

import json

import pytest
import torch
from run_toys import summary

import align
from align.commands.sample import _behind
from align.config import load_recipe
from align.errors import UserError
from align.evaluation.plan import plan
from align.files import weights
from align.policy import adapter_file
from align.policy.adapter_file import SAMPLING_KEY
from align.share import card
from align.share.stock import stock

BLOCK = {"num_steps": 3, "spacing": "trailing", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def run(tiny_sd_factory, tmp_path_factory):
    """A student of one round."""
    folder = tmp_path_factory.mktemp("student")
    tiny_sd_factory().save_pretrained(folder / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "tdm",
        "data": {"name": "prompts", "prompts": ["a cat", "two"]},
        "sampling": BLOCK,
        "adapter": {"rank": 2},
        "train": {"num_updates": 1, "batch_size": 2},
        "output": str(folder / "run"),
    }
    return align.train(recipe)


def test_the_adapters_file_says_it(run):
    file = run.output / "adapter" / adapter_file.FILE_NAME
    said = adapter_file.drawn_by(file)
    assert {**said, **BLOCK} == said and "last_k" not in said
    assert align.load_recipe("draft/shapes", {"sampling": said}).sampling.of_images() == said
    assert adapter_file.METADATA_KEY in weights.metadata(file), "beside what diffusers reads"


def test_the_card_and_the_stock_pipeline_draw_by_it(run):
    recipe = run.recipe
    text = card.text(recipe, summary(method="tdm"))
    assert "a student of 3 steps without guidance: draw it with 3 steps of ddim at guidance 1" in text
    assert 'timestep_spacing="trailing"' in text and "num_inference_steps=3, guidance_scale=1.0" in text
    other = {"prompts": ["x", "y"], "num_prompts": 2, "num_pictures": 2, "sampling": {"num_steps": 20}}
    shown = stock(load_recipe(recipe.dump(), {"evaluate": other}, on_disk=False))
    assert shown.call["num_inference_steps"] == 3, "a report with other steps changes nothing"
    assert "a student of" not in card.text(load_recipe("draft/shapes", on_disk=False), summary())


def test_a_recipe_that_is_named_for_the_model_does_not_change_it(run, tmp_path):
    file = tmp_path / "student.safetensors"
    file.write_bytes((run.output / "adapter" / adapter_file.FILE_NAME).read_bytes())
    _, alone = _behind(str(file), (), "draft/shapes", with_adapter=True)
    assert alone.sampling.of_images() == run.recipe.sampling.of_images()
    _, asked = _behind(str(file), ("sampling.num_steps=5",), "draft/shapes", with_adapter=True)
    assert asked.sampling.num_steps == 5 and asked.sampling.guidance_scale == 1, "what the call says itself"
    found = plan([str(file)], recipe="draft/shapes", rewards=["judge"])
    assert found.recipe.sampling.of_images() == run.recipe.sampling.of_images()


def test_students_that_are_drawn_differently_are_not_evaluated_together(run, tmp_path):
    path = run.output / "adapter" / adapter_file.FILE_NAME
    tensors, said = weights.read(path)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, steps in zip(files, (3, 2), strict=True):
        block = json.loads(said[SAMPLING_KEY]) | {"num_steps": steps}
        adapter_file.write(file, tensors, {**said, SAMPLING_KEY: json.dumps(block)})
    with pytest.raises(UserError, match="few-step students that are drawn by different sampling blocks"):
        plan([str(f) for f in files], recipe="draft/shapes", rewards=["judge"])


def test_a_file_that_says_nothing_or_nonsense(run, tmp_path):
    tensors = {"unet.x.lora_A.weight": torch.zeros(1, 1)}
    assert adapter_file.drawn_by(adapter_file.write(tmp_path / "a.safetensors", tensors, {})) is None
    with pytest.raises(UserError, match="is no JSON object"):
        adapter_file.drawn_by(adapter_file.write(tmp_path / "b.safetensors", tensors, {SAMPLING_KEY: "[1"}))

"""The text of a prompt, optimised at inference: nothing at T = 0, step by step towards a goal, each by itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.noise.text import TextSteps, Towards

PROMPTS = ["a red circle", "two stars"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_sd_factory):
    """A CLIP with the tiny pipeline's text tower, and pictures."""
    from transformers import CLIPConfig

    folder, pipeline = tmp_path_factory.mktemp("tower"), tiny_sd_factory()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=pipeline.text_encoder.config.to_dict(), vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    clip = CLIPModel(config)
    own = {name.removeprefix("text_model."): v for name, v in pipeline.text_encoder.state_dict().items()}
    clip.text_model.load_state_dict({name: own[name] for name in clip.text_model.state_dict()})
    clip.save_pretrained(folder / "clip")
    pipeline.tokenizer.save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder / "clip")
    (folder / "pictures").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    return folder


@pytest.fixture
def model(tiny_sd_factory):
    return StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())


def towards(model, place):
    return Towards(model, place / "pictures", str(place / "clip"))


def test_no_step_is_the_encoder_as_it_is(model, place):
    before = model.text.encode(PROMPTS).tensors["text"]
    found = TextSteps(model, towards(model, place), num_steps=0).encode(PROMPTS)
    assert torch.equal(found.tensors["text"], before)


def test_each_step_comes_nearer_and_what_is_not_optimised_stays(model, place):
    before = model.text.encode([*PROMPTS, ""]).tensors["text"]
    losses, loss = [], towards(model, place)

    class Watched:
        encoder = loss.encoder

        def __call__(self, *given):
            found = loss(*given)
            losses.append(float(found.detach()))
            return found

    steps = TextSteps(model, Watched(), num_steps=6, lr=3e-3)
    found = steps.encode(PROMPTS[:1])
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert not torch.equal(found.tensors["text"], before[:1]) and steps.moved[PROMPTS[0]] > 0
    assert torch.equal(model.text.encode([*PROMPTS, ""]).tensors["text"], before)  # the uncond above all


def test_a_prompt_knows_nothing_of_the_others(model, place, tiny_sd_factory):
    found = TextSteps(model, towards(model, place), num_steps=2, lr=1e-2).encode(PROMPTS).tensors["text"]
    other = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    alone = TextSteps(other, towards(other, place), num_steps=2, lr=1e-2).encode(PROMPTS[::-1]).tensors["text"]
    assert torch.equal(found, alone.flip(0))


def test_another_tower_and_an_empty_folder_are_refused(model, place, tmp_path):
    with torch.no_grad():
        model.text.text_model.get_input_embeddings().weight[3] += 1
    with pytest.raises(UserError, match="its image tower says nothing of what they write"):
        towards(model, place)
    with torch.no_grad():
        model.text.text_model.get_input_embeddings().weight[3] -= 1
    with pytest.raises(UserError, match="there is no picture in it"):
        Towards(model, tmp_path, str(place / "clip"))


def test_a_family_without_a_clip_encoder_is_refused(model, place):
    model.text = type("T5Text", (), {"tokenizer": None, "text_model": torch.nn.Linear(1, 1)})()
    with pytest.raises(UserError, match="sd reads its text by Linear, which has no image tower"):
        towards(model, place)

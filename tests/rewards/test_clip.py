"""The CLIP score against transformers and open_clip on the same tiny weights."""

import shutil
from dataclasses import replace

import pytest
import torch
from reward_toys import PROMPTS, noise, smooth, stripes, to_tensor

from rewards import RewardError
from rewards._clip import HFClip
from rewards.clip import Clip, ClipConfig

PICTURES = [noise(48, 60), smooth(48, 60), stripes(48, 60)]


def test_cosine_and_logit_are_those_of_transformers(tiny_clip):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    inputs = AutoTokenizer.from_pretrained(tiny_clip)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    pixel_values = CLIPImageProcessorPil.from_pretrained(tiny_clip)(PICTURES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(**inputs, pixel_values=pixel_values)
    logit = Clip(ClipConfig(model=str(tiny_clip), form="logit"))(to_tensor(*PICTURES), PROMPTS)
    cosine = Clip(ClipConfig(model=str(tiny_clip)))(to_tensor(*PICTURES), PROMPTS)
    torch.testing.assert_close(logit, expected.logits_per_image.diagonal(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(cosine * model.logit_scale.exp(), logit, rtol=1e-5, atol=1e-5)
    assert cosine.std() > 0.02, "features must differ, or this test would pass for any input"


def test_cosine_is_that_of_open_clip(tiny_open_clip):
    import open_clip

    name, file = tiny_open_clip.split("/", 1)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=file)
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(p) for p in PICTURES]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
    expected = (images * texts).sum(-1)
    ours = Clip(ClipConfig(model=f"open_clip:{tiny_open_clip}"))(to_tensor(*PICTURES), PROMPTS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours.std() > 0.01


@pytest.mark.parametrize("library", ["hf", "open_clip"])
def test_bfloat16_is_close_and_projects_in_float32(library, tiny_clip, tiny_open_clip):
    model = str(tiny_clip) if library == "hf" else f"open_clip:{tiny_open_clip}"
    images = to_tensor(*PICTURES)
    exact = Clip(ClipConfig(model=model))(images, PROMPTS)
    half = Clip(ClipConfig(model=model, dtype="bfloat16"))
    assert half.clip.images(images).dtype == torch.float32
    difference = (half(images, PROMPTS) - exact).abs().max()
    assert 0 < difference < 2e-2


def test_each_prompt_is_encoded_once(tiny_clip):
    clip = HFClip(str(tiny_clip))
    encoded = []
    encode = clip._project_prompts
    clip._project_prompts = lambda prompts, device: encoded.append(list(prompts)) or encode(prompts, device)
    first = clip.prompts(["a", "b", "a"], torch.device("cpu"))
    second = clip.prompts(["b", "c"], torch.device("cpu"))
    assert encoded == [["a", "b"], ["c"]]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], second[0])
    assert not first.requires_grad


def test_features_cached_in_inference_mode_still_serve_a_gradient(tiny_clip):
    reward = Clip(ClipConfig(model=str(tiny_clip)))
    images = to_tensor(*PICTURES)
    with torch.inference_mode():
        reward(images, PROMPTS)
    images.requires_grad_()
    reward(images, PROMPTS).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_prefix_and_long_prompts(tiny_clip):
    plain, prefixed = (Clip(ClipConfig(model=str(tiny_clip), prefix=prefix)) for prefix in ("", "red "))
    images = to_tensor(PICTURES[0])
    torch.testing.assert_close(prefixed(images, ["x"]), plain(images, ["red x"]))
    torch.testing.assert_close(plain(images, ["red " * 14]), plain(images, ["red " * 40]))  # 16 positions, EOS last


def test_the_gradient_is_that_of_finite_differences(tiny_clip):
    """In float64; rounding has no derivative, so the towers stand behind a resize without it."""
    reward = Clip(ClipConfig(model=str(tiny_clip))).double()
    reward.clip.dtype = torch.float64
    reward.clip.preprocess = replace(reward.clip.preprocess, pil_exact=False)
    images = to_tensor(smooth(40, 40)).double().requires_grad_()
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:1]).sum(), images)
    with torch.no_grad():
        ahead, behind = (reward(images + step * direction, PROMPTS[:1]).sum() for step in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


def test_models_that_cannot_be_loaded_are_one_line(tiny_clip, tmp_path):
    for model, said in (
        (str(tmp_path / "nowhere"), "there is no such folder"),
        ("nobody/no-such-clip", "could not be loaded as a CLIP"),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32/no_such_tag", "could not be loaded"),
        ("open_clip:no-such-name/openai", "could not be loaded"),
    ):
        with pytest.raises(RewardError, match=said) as caught:
            Clip(ClipConfig(model=model))
        assert "\n" not in str(caught.value) and model.removeprefix("open_clip:") in str(caught.value)


def test_a_checkpoint_without_some_weights_is_refused(tiny_clip, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_clip, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("visual_projection.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"not a complete CLIP: it has no weights for visual_projection\.weight"):
        Clip(ClipConfig(model=str(tmp_path / "broken")))

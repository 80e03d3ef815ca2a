"""The CLIP score against transformers and open_clip on the same tiny weights."""

import shutil
from dataclasses import replace

import pytest
import torch
from reward_toys import PICTURES as KINDS
from reward_toys import PROMPTS, SIZES, noise, smooth, stripes, to_tensor

from rewards import RewardError
from rewards._clip import HFClip
from rewards.clip import Clip, ClipConfig

PICTURES = [noise(48, 60), smooth(48, 60), stripes(48, 60)]


def test_cosine_logit_and_clipscore_are_those_of_transformers(tiny_clip):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tiny_clip)
    scale = model.logit_scale.detach().exp()
    forms = {form: Clip(ClipConfig(model=str(tiny_clip), form=form)) for form in ("cosine", "logit", "clipscore")}
    for size in SIZES:
        pictures = [picture(*size) for picture in KINDS]
        pixel_values = CLIPImageProcessorPil.from_pretrained(tiny_clip)(pictures, return_tensors="pt")["pixel_values"]
        cosine = {}
        for prefix in ("", "A photo depicts "):
            texts = [prefix + prompt for prompt in PROMPTS]
            inputs = words(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
            with torch.no_grad():
                cosine[prefix] = model(**inputs, pixel_values=pixel_values).logits_per_image.diagonal() / scale
        assert cosine[""].std() > 0.02, "features must differ, or this test would pass for any input"
        wanted = {"cosine": cosine[""], "logit": scale * cosine[""]}
        wanted["clipscore"] = 2.5 * cosine["A photo depicts "].clamp(min=0)
        images = to_tensor(*pictures)
        for form, reward in forms.items():
            largest = float(wanted[form].abs().max())
            torch.testing.assert_close(reward(images, PROMPTS), wanted[form], rtol=0, atol=1e-4 * max(largest, 0.1))
            reward.clip.preprocess, kept = (lambda _, ready=pixel_values: ready), reward.clip.preprocess
            torch.testing.assert_close(reward(images, PROMPTS), wanted[form], rtol=0, atol=1e-5 * max(largest, 0.1))
            reward.clip.preprocess = kept


def test_cosine_is_that_of_open_clip(tiny_open_clip):
    import open_clip

    name, file = tiny_open_clip.split("/", 1)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=file)
    reward = Clip(ClipConfig(model=f"open_clip:{tiny_open_clip}"))
    for size in SIZES:
        pictures = [picture(*size) for picture in KINDS]
        with torch.no_grad():
            images = model.encode_image(torch.stack([preprocess(p) for p in pictures]), normalize=True)
            texts = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
        ours = reward(to_tensor(*pictures), PROMPTS)
        torch.testing.assert_close(ours, (images * texts).sum(-1), rtol=0, atol=1e-5)
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
    assert encoded == [["a"], ["b"], ["c"]], "one at a time: a row does not depend on the batch that needed it"
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
        ("nobody/no-such-clip", "could not be loaded"),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32/no_such_tag", "could not be loaded"),
        ("open_clip:no-such-name/openai", "could not be loaded"),
    ):
        with pytest.raises(RewardError, match=said) as caught:
            Clip(ClipConfig(model=model))
        assert "\n" not in str(caught.value) and model.removeprefix("open_clip:") in str(caught.value)


def edited(tiny_clip, folder, change):
    """A copy of the checkpoint with other tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_clip, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_checkpoint_with_other_keys_is_refused(tiny_clip, tmp_path):
    lacks = edited(tiny_clip, tmp_path / "lacks", lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(RewardError, match=r"not a complete CLIPModel: it has no weights for visual_projection\.weight"):
        Clip(ClipConfig(model=lacks))
    extra = edited(tiny_clip, tmp_path / "extra", lambda tensors: tensors.update(more=torch.ones(1)))
    with pytest.raises(RewardError, match=r"extra is not a CLIPModel: .* no place for, more\."):
        Clip(ClipConfig(model=extra))


def test_constants_of_older_files_are_passed_over(tiny_clip, tmp_path):
    older = {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None].clone() for tower in ("text", "vision")}
    model = edited(tiny_clip, tmp_path / "older", lambda tensors: tensors.update(older))
    images = to_tensor(PICTURES[0])
    torch.testing.assert_close(
        Clip(ClipConfig(model=model))(images, PROMPTS[:1]), Clip(ClipConfig(model=str(tiny_clip)))(images, PROMPTS[:1])
    )

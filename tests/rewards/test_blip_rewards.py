"""ImageReward, CycleReward and BLIP against a BLIP in plain torch, from files in the published layout."""

import shutil

import pytest
import torch
from blip_reference import LARGE
from reward_toys import PICTURES, PROMPTS, SIZES, smooth, to_tensor
from tiny_checkpoints import TINY_SIZES, PublishedReward, bert_tokenizer, published_blip, published_reward
from torch.nn.functional import gelu, normalize

from rewards import RewardError
from rewards._blip import blip_large, renamed
from rewards.blip import Blip, BlipConfig
from rewards.cyclereward import CycleReward, CycleRewardConfig
from rewards.imagereward import ImageReward, ImageRewardConfig

TEXTS = [*PROMPTS[:2], "a red circle left of two blue squares " * 20]
"""The last has more tokens than any of these rewards reads."""

NUMBERS = {"imagereward": (0, 2, 4, 6, 7), "cyclereward": (0, 2, 4, 6, 8)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{reward: (its file, the reference network)} and the tokenizer."""
    folder = tmp_path_factory.mktemp("blip_rewards")
    found = {n: (folder / n, published_reward(folder / n, NUMBERS[n], seed=i)) for i, n in enumerate(NUMBERS)}
    return found | {
        "blip": (folder / "blip", published_blip(folder / "blip", seed=9)),
        "tokenizer": bert_tokenizer(folder / "bert"),
    }


def build(kind, files, **settings):
    file, _ = files[kind.Config.model_fields["name"].default]
    return kind(kind.Config(weights=str(file), tokenizer=str(files["tokenizer"]), sizes=TINY_SIZES, **settings))


def pixels_of(pictures, side=32):
    """The published steps: torchvision on PIL images."""
    from torchvision import transforms

    steps = [transforms.Resize(side, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(side)]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    return torch.stack([transforms.Compose(steps)(picture) for picture in pictures])


def tokens(files, max_length):
    from transformers import AutoTokenizer

    out = AutoTokenizer.from_pretrained(files["tokenizer"])(
        TEXTS, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )
    return out["input_ids"], out["attention_mask"]


@torch.no_grad()
def expected(name, files, pixels, form=""):
    network = files[name][1]
    blip = network if name == "blip" else network.blip
    ids, mask = tokens(files, 128 if name == "cyclereward" else 35)
    image = blip.visual_encoder(pixels)
    if form == "itc":
        seen = normalize(blip.vision_proj(image[:, 0]), dim=-1)
        return (seen * normalize(blip.text_proj(blip.text_encoder(ids, mask)[:, 0]), dim=-1)).sum(-1)
    state = blip.text_encoder(ids, mask, image)[:, 0]
    if name == "imagereward":
        return (network.mlp(state) - 0.16717362830052426) / 1.0333394966054072
    if name == "cyclereward":
        return network.mlp(state, gelu)
    logits = blip.itm_head(state)
    return logits.softmax(-1)[:, 1] if form == "itm" else logits[:, 1] - logits[:, 0]


def said(x):
    return x.get("form", "") if isinstance(x, dict) else x.__name__


KINDS = [(ImageReward, {}), (CycleReward, {})] + [(Blip, {"form": form}) for form in ("itc", "itm", "itm_logit")]


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=said)
def test_scores_are_those_of_plain_torch_from_pixels_and_from_pictures(kind, settings, files):
    reward = build(kind, files, **settings)
    name = reward.name
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        reference = pixels_of(pictures)
        scores = expected(name, files, reference, settings.get("form", ""))
        scale = float(scores.abs().max())
        assert scores.std() > 0.005 * scale, "scores must differ, or this test would pass for any input"
        torch.testing.assert_close(reward(to_tensor(*pictures), TEXTS), scores, rtol=0, atol=1e-4 * max(scale, 1e-2))
        reward.preprocess, kept = (lambda _, ready=reference: ready), reward.preprocess
        torch.testing.assert_close(reward(to_tensor(*pictures), TEXTS), scores, rtol=0, atol=1e-5 * max(scale, 1))
        reward.preprocess = kept


@pytest.mark.parametrize("name", NUMBERS)
def test_every_published_name_has_its_place_at_real_size(name, files):
    """Names and shapes of the reference, which at this size are the 625 of image-reward 1.5."""
    with torch.device("meta"):
        published = PublishedReward(NUMBERS[name], LARGE).state_dict()
        assert len(published) == 625
        ours, _ = blip_large(str(files["tokenizer"]), 35, torch.float32)
    left_out = ("vision_proj.", "text_proj.")
    keys = {key.removeprefix("blip."): tensor.shape for key, tensor in published.items() if key.startswith("blip.")}
    found = {renamed(k): s for k, s in keys.items() if not k.startswith(left_out) and not k.endswith("position_ids")}
    assert found == {key: tensor.shape for key, tensor in ours.state_dict().items()}
    for tower, eps in ((ours.vision_model, 1e-6), (ours.text_encoder, 1e-12)):  # too small to be seen in a score
        assert {m.eps for m in tower.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}


def test_hfs_layout_of_blip(files, tmp_path):
    """The same weights as transformers stores them, scored by transformers."""
    from transformers import BlipConfig as HFConfig
    from transformers import BlipForImageTextRetrieval, BlipImageProcessorPil

    from rewards._load import load_strictly

    bert_tokenizer(tmp_path)
    part = {side: {} for side in ("vision", "text")}
    for key, value in TINY_SIZES.items():
        side, _, setting = key.partition("_")
        part[side][setting] = value
    part["text"] |= {"encoder_hidden_size": 32, "is_decoder": True}
    config = HFConfig(vision_config=part["vision"] | {"layer_norm_eps": 1e-6}, text_config=part["text"])
    config.image_text_hidden_size = 256
    model = BlipForImageTextRetrieval(config).eval()
    state = {renamed(k): v for k, v in files["blip"][1].state_dict().items() if not k.endswith("position_ids")}
    load_strictly(model, state, "the reference")
    model.save_pretrained(tmp_path)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    pictures = [picture(300, 401) for picture in PICTURES]
    pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
    ids, mask = tokens(files, 35)
    for form, itm in (("itc", False), ("itm", True)):
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask, pixel_values=pixel_values, use_itm_head=itm).itm_score
        wanted = out.softmax(-1)[:, 1] if itm else out.diagonal()
        ours = Blip(BlipConfig(model=str(tmp_path), form=form))(to_tensor(*pictures), TEXTS)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [ImageReward, CycleReward, Blip], ids=lambda kind: kind.__name__)
def test_the_gradient_is_that_of_finite_differences(kind, files, finite_differences):
    reward = build(kind, files).double()
    towers = reward.towers if kind is Blip else reward.blip
    towers.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 40))


def test_bfloat16_towers_stay_close_and_the_head_is_float32(files):
    images = to_tensor(*(picture(48, 60) for picture in PICTURES))
    for kind in (ImageReward, CycleReward, Blip):
        exact, half = build(kind, files)(images, PROMPTS), build(kind, files, dtype="bfloat16")
        heads = half.towers.itm_head if kind is Blip else half.blip.mlp
        assert all(parameter.dtype == torch.float32 for parameter in heads.parameters())
        scores = half(images, PROMPTS)
        assert scores.dtype == torch.float32
        assert 0 < (scores - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_file_that_is_another_is_refused_by_name(files, tmp_path):
    file = tmp_path / "broken.pt"
    state = torch.load(files["imagereward"][0], weights_only=True)
    settings = {"weights": str(file), "tokenizer": str(files["tokenizer"]), "sizes": TINY_SIZES}
    torch.save({k: v for k, v in state.items() if "crossattention" not in k}, file)
    with pytest.raises(RewardError, match=r"broken\.pt is not a complete .* no weights for text_encoder\.encoder"):
        ImageReward(ImageRewardConfig(**settings))
    torch.save(state | {"blip.more": torch.zeros(1)}, file)
    with pytest.raises(RewardError, match=r"broken\.pt .* has no place for, more\."):
        ImageReward(ImageRewardConfig(**settings))
    shutil.copy(files["cyclereward"][0], file)
    with pytest.raises(RewardError, match=r"broken\.pt is not a complete .* no weights for mlp\.layers\.7"):
        ImageReward(ImageRewardConfig(**settings))
    with pytest.raises(RewardError, match=r"cyclereward: weights=.*nowhere: there is no such file"):
        CycleReward(CycleRewardConfig(weights=str(tmp_path / "nowhere")))

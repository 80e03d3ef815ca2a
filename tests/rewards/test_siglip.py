"""The SigLIP score and the aesthetic score V2.5 against transformers on the same tiny weights."""

import pytest
import torch
from reward_toys import PICTURES, PROMPTS, SIZES, smooth, to_tensor
from tiny_checkpoints import head
from torch import nn

from rewards import RewardError
from rewards._affine import affine, read_head
from rewards.aesthetic_v25 import AestheticV25, AestheticV25Config
from rewards.siglip import Siglip, SiglipConfig

CAPITALS = ["A Red circle", *PROMPTS[1:]]


@torch.no_grad()
def logits(folder, pictures):
    """As transformers' page of the model tells one to compute them, prompts in lower case."""
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

    model = SiglipModel.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)(
        [prompt.lower() for prompt in CAPITALS], padding="max_length", truncation=True, return_tensors="pt"
    )
    assert words["input_ids"].shape == (3, 16)
    pixel_values = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    return model(input_ids=words["input_ids"], pixel_values=pixel_values).logits_per_image.diagonal(), pixel_values


@pytest.mark.parametrize("version", [1, 2])
def test_scores_are_those_of_transformers(version, tiny_siglips):
    folder = tiny_siglips[version]
    reward = Siglip(SiglipConfig(model=str(folder)))
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        wanted, pixel_values = logits(folder, pictures)
        assert wanted.std() > 0.05
        images = to_tensor(*pictures)
        torch.testing.assert_close(reward(images, CAPITALS), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        reward.siglip.preprocess, kept = (lambda _, ready=pixel_values: ready), reward.siglip.preprocess
        torch.testing.assert_close(reward(images, CAPITALS), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        reward.siglip.preprocess = kept


def test_the_forms_are_one_another(tiny_siglips):
    images = to_tensor(*(picture(48, 60) for picture in PICTURES))
    logit, cosine, probability = (
        Siglip(SiglipConfig(model=str(tiny_siglips[2]), form=form))(images, PROMPTS)
        for form in ("logit", "cosine", "probability")
    )
    torch.testing.assert_close(logit, torch.tensor(2.3).exp() * cosine - 3.0)
    torch.testing.assert_close(probability, logit.sigmoid())


def test_the_gradient_is_that_of_finite_differences(tiny_siglips, finite_differences):
    reward = Siglip(SiglipConfig(model=str(tiny_siglips[1]))).double()
    reward.siglip.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 40))


def test_bfloat16_pools_in_float32(tiny_siglips):
    images = to_tensor(*(picture(48, 60) for picture in PICTURES))
    exact, half = (
        Siglip(SiglipConfig(model=str(tiny_siglips[2]), dtype=dtype, form="cosine"))
        for dtype in ("float32", "bfloat16")
    )
    assert all(p.dtype == torch.float32 for p in half.siglip.head.parameters())
    assert half.siglip.images(images).dtype == torch.float32
    assert 0 < (half(images, PROMPTS) - exact(images, PROMPTS)).abs().max() < 2e-2


@pytest.fixture(scope="module")
def head_v25(tmp_path_factory):
    return head(tmp_path_factory.mktemp("v25") / "head.pth", "scoring_head", 32, (0, 2, 4, 6, 8), 5, torch.bfloat16)


def test_aesthetic_v25_is_its_layers_on_the_pooled_embedding(tiny_siglips, head_v25):
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    folder = tiny_siglips[1]
    reward = AestheticV25(AestheticV25Config(model=str(folder), head=str(head_v25)))
    state = torch.load(head_v25, weights_only=True)
    model = SiglipVisionModel.from_pretrained(folder, dtype=torch.float32)
    layers = nn.Sequential()
    for number in (0, 2, 4, 6, 8):
        weight, bias = (state[f"scoring_head.{number}.{part}"].float() for part in ("weight", "bias"))
        layer = nn.Linear(*reversed(weight.shape))
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        pixel_values = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            pooled = model(pixel_values).pooler_output
            wanted = layers(pooled / pooled.norm(dim=-1, keepdim=True))[:, 0]
        assert wanted.std() > 1e-3
        torch.testing.assert_close(reward(to_tensor(*pictures), [""] * 3), wanted, rtol=0, atol=1e-5)


def test_the_gradient_of_aesthetic_v25(tiny_siglips, head_v25, finite_differences):
    reward = AestheticV25(AestheticV25Config(model=str(tiny_siglips[1]), head=str(head_v25))).double()
    reward.siglip.dtype = torch.float64
    finite_differences(reward, [""], smooth(40, 40))


def test_golden_numbers_of_an_affine_map(tmp_path):
    """A head whose composition is known by hand: w = 2 . 3 . (1, -1), b = 3 . 0.5 - 1, whatever lies between."""
    state = {
        "scoring_head.0.weight": torch.tensor([[1.0, -1.0], [0.0, 0.0]]),
        "scoring_head.0.bias": torch.tensor([0.0, 0.25]),
        "scoring_head.2.weight": torch.tensor([[2.0, 2.0]]),
        "scoring_head.2.bias": torch.tensor([0.0]),
        "scoring_head.4.weight": torch.tensor([[3.0]]),
        "scoring_head.4.bias": torch.tensor([-1.0]),
    }
    torch.save(state, tmp_path / "head.pth")
    weight, bias = affine(read_head(tmp_path / "head.pth", "scoring_head"))
    assert weight.tolist() == [6, -6] and bias.item() == 0.5
    state["scoring_head.4.weight"] = torch.ones(1, 2)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"head\.pth: layers of shapes .* are no head"):
        read_head(tmp_path / "head.pth", "scoring_head")

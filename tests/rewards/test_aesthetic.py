"""The aesthetic score against its parts written out: transformers' embedding, torch's layers, torchvision's resize."""

import os
from pathlib import Path

import pytest
import torch
from reward_toys import PICTURES, SIZES, smooth, to_tensor
from torch import nn

from rewards import RewardError
from rewards._affine import affine, read_head
from rewards._load import verify
from rewards.aesthetic import HEAD_SHA256, Aesthetic, AestheticConfig
from rewards.aesthetic_v25 import HEAD_SHA256 as HEAD_V25_SHA256


def layers(head: dict[str, torch.Tensor]) -> nn.Sequential:
    linear = []
    for number in sorted({int(key.split(".")[1]) for key in head}):
        weight, bias = head[f"layers.{number}.weight"], head[f"layers.{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        linear.append(layer)
    return nn.Sequential(*linear)


def test_a_stack_of_linear_layers_is_one_affine_map(tiny_head):
    head = torch.load(tiny_head, weights_only=True)
    weight, bias = affine(read_head(tiny_head, "layers"))
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((x.double() @ weight + bias).float(), layers(head)(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_the_score_is_the_head_on_the_normalised_projected_embedding(tiny_clip, tiny_head):
    from transformers import CLIPImageProcessorPil, CLIPModel

    clip = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    head = layers(torch.load(tiny_head, weights_only=True))
    reward = Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tiny_head)))
    for size in SIZES:
        pictures = [picture(*size) for picture in PICTURES]
        pixel_values = CLIPImageProcessorPil.from_pretrained(tiny_clip)(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embedding = clip.get_image_features(pixel_values=pixel_values).pooler_output
            wanted = head(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]
        torch.testing.assert_close(reward(to_tensor(*pictures), [""] * 3), wanted, rtol=0, atol=1e-5)
        assert wanted.std() > 0.01


def test_the_gradient_is_that_of_finite_differences(tiny_clip, tiny_head, finite_differences):
    reward = Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tiny_head))).double()
    reward.dtype = torch.float64
    finite_differences(reward, [""], smooth(40, 40))


# |w|, b, and the value at the unit vectors along (1, 2, ..., n) and (1, 1, ..., 1), of the published heads.
GOLDEN = {
    "aesthetic": ("layers", HEAD_SHA256, (17.99562478, 5.23664584, 4.420676266, 4.883284854)),
    "aesthetic_v25": ("scoring_head", HEAD_V25_SHA256, (25.4523, 1.93904, 2.829025388, 3.618319845)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_of_the_published_heads(name):
    path = os.environ.get(f"ALIGN_HEAD_{name.upper()}")
    if path is None:
        pytest.skip(f"set ALIGN_HEAD_{name.upper()} to the published head's file, which is not shipped")
    prefix, digest, golden = GOLDEN[name]
    verify(Path(path), digest)
    weight, bias = affine(read_head(Path(path), prefix))
    along = torch.arange(1, len(weight) + 1, dtype=torch.float64)
    same = torch.ones(len(weight), dtype=torch.float64)
    found = [weight.norm(), bias, *(weight @ (x / x.norm()) + bias for x in (along, same))]
    torch.testing.assert_close(torch.stack(found), torch.tensor(golden, dtype=torch.float64), rtol=0, atol=5e-5)


def test_alignprops_preprocessing(tiny_clip, tiny_head):
    from torchvision.transforms.functional import InterpolationMode, normalize, resize

    reward = Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tiny_head), preprocess="alignprop"))
    images = to_tensor(smooth(64, 64))
    resized = resize(images, [32], InterpolationMode.BILINEAR, antialias=True)
    reference = normalize(resized, list(reward.preprocess.mean), list(reward.preprocess.std))
    torch.testing.assert_close(reward.preprocess(images), reference, rtol=0, atol=1e-6)


def test_a_head_that_is_none_is_one_line(tiny_clip, tmp_path):
    with pytest.raises(RewardError, match="there is no such file"):
        Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tmp_path / "nowhere.pth")))
    torch.save({"fc.weight": torch.ones(1, 24)}, tmp_path / "other.pth")
    with pytest.raises(RewardError, match=r"does not hold layers\.N\.weight"):
        Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tmp_path / "other.pth")))

"""The aesthetic score against its parts written out: transformers' embedding, torch's layers, torchvision's resize."""

import pytest
import torch
from reward_toys import noise, smooth, stripes, to_tensor
from torch import nn

from rewards import RewardError
from rewards.aesthetic import Aesthetic, AestheticConfig, affine

PICTURES = [noise(48, 60), smooth(48, 60), stripes(48, 60)]


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
    weight, bias = affine(head)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((x.double() @ weight + bias).float(), layers(head)(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_the_score_is_the_head_on_the_normalised_projected_embedding(tiny_clip, tiny_head):
    from transformers import CLIPImageProcessorPil, CLIPModel

    clip = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float32)
    pixel_values = CLIPImageProcessorPil.from_pretrained(tiny_clip)(PICTURES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embedding = clip.get_image_features(pixel_values=pixel_values).pooler_output
        embedding = embedding / embedding.norm(dim=-1, keepdim=True)
        expected = layers(torch.load(tiny_head, weights_only=True))(embedding)[:, 0]
    ours = Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tiny_head)))(to_tensor(*PICTURES), [""] * 3)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.01


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
    with pytest.raises(RewardError, match=r"holds no layers\.N\.weight"):
        Aesthetic(AestheticConfig(model=str(tiny_clip), head=str(tmp_path / "other.pth")))

"""Preprocessing against PIL, torchvision and HF, pixel by pixel."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reward_toys import noise, smooth, stripes, to_tensor
from torch.nn.functional import interpolate

from rewards._preprocess import Preprocess, center_crop, differentiable_resize, normalise, quantise, short_side

SIZES = [(512, 512), (1024, 1024), (768, 512), (100, 160), (224, 227), (300, 401)]
PICTURES = [noise, smooth, stripes]


def levels_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference in 8-bit levels."""
    return ((ours - theirs).abs() * 255).max().item()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("size", SIZES)
def test_short_side_and_crop_are_exactly_pil(size, picture):
    from transformers import CLIPImageProcessorPil

    image = picture(*size)
    reference = CLIPImageProcessorPil(do_normalize=False)(image, return_tensors="pt")["pixel_values"]
    ours = Preprocess(size=224, crop=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)(to_tensor(image))
    assert levels_apart(ours, reference) < 1e-3


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("picture", PICTURES)
def test_squash_and_enlarging_are_exactly_pil(picture, mode):
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    for size, to in (((160, 100), (64, 96)), ((40, 56), (96, 96)), ((64, 64), (64, 32))):
        image = picture(*size)
        horizontal = image.resize((to[1], size[0]), resample)
        reference = to_tensor(horizontal.resize((to[1], to[0]), resample))
        assert levels_apart(differentiable_resize(to_tensor(image), to, mode), reference) < 1e-3, (size, to)


def test_a_single_float_pass_would_not_do():
    """The bound above can fail: without the roundings of PIL the overshoot of bicubic alone is many levels."""
    image = stripes(512, 512)
    reference = to_tensor(image.resize((224, 224), Image.Resampling.BICUBIC))
    assert levels_apart(differentiable_resize(to_tensor(image), (224, 224), pil_exact=False), reference) > 5


@pytest.mark.parametrize("size", [(300, 401), (224, 227), (227, 224), (230, 224)])
def test_crop_offsets_of_torchvision_and_hf(size):
    from torchvision.transforms.functional import center_crop as reference
    from transformers import CLIPImageProcessorPil

    image = noise(*size)
    pixels = to_tensor(image)
    resized = differentiable_resize(pixels, short_side(pixels, 224))
    assert torch.equal(center_crop(resized, (224, 224), "torchvision"), reference(resized, [224, 224]))
    hf = CLIPImageProcessorPil(do_resize=False, do_normalize=False)(image, return_tensors="pt")["pixel_values"]
    assert levels_apart(center_crop(pixels, (224, 224), "hf"), hf) < 1e-3
    with pytest.raises(ValueError, match="cannot crop"):
        center_crop(pixels, (512, 224), "hf")


def test_the_gradient_is_that_of_the_plain_antialiased_resize():
    image = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, plain = image.clone().requires_grad_(), image.clone().requires_grad_()
    (differentiable_resize(ours, (20, 16)) * weights).sum().backward()
    (interpolate(plain, size=(20, 16), mode="bicubic", antialias=True, align_corners=False) * weights).sum().backward()
    assert ours.grad is not None and plain.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-6)  # PIL's weights have 22 bits


def test_quantise_rounds_clips_and_passes_the_gradient():
    x = torch.tensor([-0.2, 0.0, 0.3, 0.5, 1.0, 1.4], requires_grad=True)
    torch.testing.assert_close(quantise(x) * 255, torch.tensor([0.0, 0, 76, 128, 255, 255]), rtol=0, atol=1e-4)
    quantise(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(6))


@pytest.mark.parametrize("file", [{"size": 24}, {"size": 24, "do_center_crop": False, "resample": 2}])
def test_an_old_vits_plain_size_is_both_sides(file, tmp_path):
    """As transformers reads the 2021 file of facebook/dino-vits16; of a CLIP's it is the short side, then cropped."""
    from transformers import ViTImageProcessorPil

    saved = {"feature_extractor_type": "ViTFeatureExtractor"} | file
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    expected = ViTImageProcessorPil.from_pretrained(tmp_path)(smooth(30, 50), return_tensors="pt")["pixel_values"]
    assert Preprocess.from_hf(file)(to_tensor(smooth(30, 50))).shape == expected.shape == (1, 3, 24, 24)


def test_reading_a_checkpoints_preprocessor_config(tiny_clip):
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    for reference in (
        CLIPImageProcessorPil.from_pretrained(tiny_clip),
        CLIPImageProcessorPil(size=40, crop_size=32, resample=2, image_mean=[0.1, 0.2, 0.3]),
        SiglipImageProcessorPil(size={"height": 24, "width": 48}),
        CLIPImageProcessorPil(do_normalize=False, do_center_crop=False, size={"height": 24, "width": 24}),
    ):
        image = smooth(75, 90)
        expected = reference(image, return_tensors="pt")["pixel_values"]
        ours = Preprocess.from_hf(reference.to_dict())
        got = ours(to_tensor(image))
        assert got.shape == expected.shape
        assert ((got - expected).abs() * 255 * torch.tensor(ours.std).view(1, 3, 1, 1)).max() < 1e-3
    with pytest.raises(ValueError, match="resample=0"):
        Preprocess.from_hf({"resample": 0})


def test_reading_open_clips_preprocess_cfg():
    import open_clip
    from open_clip.transform import PreprocessCfg

    for cfg in (PreprocessCfg(size=32), PreprocessCfg(size=(24, 24), resize_mode="squash", interpolation="bilinear")):
        image = smooth(75, 90)
        expected = open_clip.transform.image_transform_v2(cfg, is_train=False)(image)[None]
        ours = Preprocess.from_open_clip(vars(cfg))
        got = ours(to_tensor(image))
        assert got.shape == expected.shape
        assert ((got - expected).abs() * 255 * torch.tensor(ours.std).view(1, 3, 1, 1)).max() < 1e-3


def test_normalise():
    x = torch.full((1, 3, 2, 2), 0.5)
    expected = np.array([0.0, 1.0, -1.0])
    np.testing.assert_allclose(normalise(x, (0.5, 0.4, 0.6), (0.5, 0.1, 0.1))[0, :, 0, 0], expected, atol=1e-6)


def test_the_long_side_is_truncated():
    for size, wanted in (((300, 404), (224, 301)), ((404, 300), (301, 224)), ((300, 300), (224, 224))):  # 301.65
        assert short_side(torch.zeros(1, 3, *size), 224) == wanted

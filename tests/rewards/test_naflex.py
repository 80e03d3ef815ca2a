"""SigLIP 2 at native aspect ratio against transformers' model and processor on the same tiny weights."""

import random

import pytest
import torch
from reward_toys import PICTURES, PROMPTS, SIZES, noise, smooth, to_tensor

from rewards._naflex import Patches, fitted
from rewards.siglip import Siglip, SiglipConfig


@torch.no_grad()
def expected(folder, pictures):
    from transformers import AutoTokenizer, Siglip2ImageProcessorPil, Siglip2Model

    model = Siglip2Model.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    pixels = Siglip2ImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    return model(input_ids=words["input_ids"], **pixels).logits_per_image.diagonal(), pixels


def test_scores_are_those_of_transformers_at_every_shape(tiny_naflex):
    """There an image is filled up to 20 patches, which are masked; here it has its own number."""
    reward = Siglip(SiglipConfig(model=str(tiny_naflex)))
    numbers = set()
    for size in [*SIZES, (60, 300)]:
        pictures = [picture(*size) for picture in PICTURES]
        wanted, pixels = expected(tiny_naflex, pictures)
        scale = float(wanted.abs().max())
        assert wanted.std() > 0.01 * scale
        images = to_tensor(*pictures)
        torch.testing.assert_close(reward(images, PROMPTS), wanted, rtol=0, atol=1e-4 * scale)
        patches = reward.siglip.preprocess(images)
        count = int(pixels["pixel_attention_mask"][0].sum())
        assert patches.shape[1:3] == tuple(pixels["spatial_shapes"][0].tolist())
        theirs = pixels["pixel_values"][:, :count]
        assert ((patches.flatten(1, 2) - theirs).abs() * 255 / 2).max() < 1e-3, "levels"
        ready = theirs.view_as(patches)
        reward.siglip.preprocess, kept = (lambda _, ready=ready: ready), reward.siglip.preprocess
        torch.testing.assert_close(reward(images, PROMPTS), wanted, rtol=0, atol=1e-5 * scale)
        reward.siglip.preprocess = kept
        numbers.add(count)
    assert min(numbers) < 20, "some are filled up, or the mask is not tried"


def test_sizes_are_those_of_transformers():
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    draw = random.Random(0)
    for _ in range(200):
        height, width, patch = draw.randint(1, 3000), draw.randint(1, 3000), draw.choice((8, 14, 16))
        most = draw.choice((4, 64, 256, 1024))
        found = fitted(height, width, patch, most)
        assert found == get_image_size_for_max_num_patches(height, width, patch, most)
        assert found[0] * found[1] <= most * patch**2


def test_the_published_settings_and_their_names():
    config = {"patch_size": 14, "max_num_patches": 64, "resample": 3, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    assert Patches.from_hf(config) == Patches(None, mode="bicubic", mean=(0.1,) * 3, std=(0.2,) * 3, patch=14, most=64)
    half = (0.5,) * 3
    assert Patches.from_hf({}) == Patches(None, mode="bilinear", mean=half, std=half), "the processor's own defaults"


def test_the_gradient_is_that_of_finite_differences(tiny_naflex, finite_differences):
    reward = Siglip(SiglipConfig(model=str(tiny_naflex))).double()
    reward.siglip.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 52))


def test_the_pool_is_float32_behind_a_bfloat16_tower(tiny_naflex):
    images = to_tensor(noise(48, 60), smooth(48, 60))
    exact, half = (
        Siglip(SiglipConfig(model=str(tiny_naflex), dtype=dtype, form="cosine")) for dtype in ("float32", "bfloat16")
    )
    assert half.siglip.images(images).dtype == torch.float32
    difference = (half(images, PROMPTS[:2]) - exact(images, PROMPTS[:2])).abs().max()
    assert 0 < difference < 2e-2


@pytest.mark.parametrize("version", [1, 2])
def test_a_fixed_resolution_stays_one(version, tiny_siglips):
    reward = Siglip(SiglipConfig(model=str(tiny_siglips[version])))
    assert type(reward.siglip).__name__ == "SiglipTowers" and reward.siglip.preprocess.size == (32, 32)

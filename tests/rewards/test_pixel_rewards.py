"""Rewards without a network against closed forms, scipy, numpy and Pillow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from reward_toys import noise, smooth, stripes, to_tensor
from scipy import fft, ndimage, stats

from rewards._jpeg import CHROMA, LUMA, coefficients, decode, soft_round, table
from rewards.colourfulness import Colourfulness, ColourfulnessConfig
from rewards.jpeg import Jpeg, JpegConfig
from rewards.sharpness import Sharpness, SharpnessConfig
from rewards.symmetry import Symmetry, SymmetryConfig


def scene(seed: int, detail: float, side: int = 96) -> Image.Image:
    """Clouds whose fine detail is as strong as asked: 0 is smooth, 1 nearly noise."""
    random = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(random.normal(size=(side, side, 3)), (s, s, 0)) * s for s in (12, 4, 1.5, 0.5)]
    mixed = sum(layer * weight for layer, weight in zip(layers, (1, detail, detail**1.5, 2 * detail**2), strict=True))
    return Image.fromarray(np.clip(127 + 90 * mixed, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, quality: int) -> tuple[int, Image.Image]:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.tell(), Image.open(file)


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
def test_quantisation_tables_are_those_in_pillows_files(quality):
    _, image = encoded(noise(16, 16), quality)
    written = {k: sorted(v) for k, v in image.quantization.items()}
    assert written == {k: sorted(table(base, quality).flatten().tolist()) for k, base in enumerate((LUMA, CHROMA))}


def test_coefficients_are_scipys_dct():
    picture = scene(0, 0.5, 32).convert("L").convert("RGB")  # grey: luma is the level itself
    level = np.asarray(picture, dtype=np.float64)[..., 0] - 128
    luma, blue, red = coefficients(to_tensor(picture).double(), 60)
    for i in range(4):
        for j in range(4):
            wanted = fft.dctn(level[8 * i : 8 * i + 8, 8 * j : 8 * j + 8], norm="ortho") / table(LUMA, 60).numpy()
            np.testing.assert_allclose(luma[0, i, j].numpy(), wanted, rtol=0, atol=1e-5)
    assert luma.shape == (1, 4, 4, 8, 8) and blue.shape == red.shape == (1, 2, 2, 8, 8)
    assert blue.abs().max() < 1e-4 and red.abs().max() < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (50, 75)])
@pytest.mark.parametrize("quality", [10, 50, 95])
def test_what_is_decoded_is_what_pillow_decodes(quality, size):
    """Up to libjpeg's roundings to 8 bits on the way, which move a coefficient across a step now and then."""
    colour = scene(1, 0.5).crop((0, 0, size[1], size[0]))
    for picture, bound in ((colour.convert("L").convert("RGB"), 0.6), (colour, 1.7)):
        images = to_tensor(picture)
        ours = decode([c.round() for c in coefficients(images, quality)], quality, size)
        theirs = to_tensor(encoded(picture, quality)[1].convert("RGB"))
        difference, loss = (255 * (x - theirs).abs().mean() for x in (ours, images))
        assert difference < bound and difference < 0.35 * loss, (difference, loss)


def test_the_exact_size_is_pillows():
    pictures = [noise(64, 64), smooth(64, 64), stripes(64, 64)]
    for quality in (50, 95):
        wanted = torch.tensor([encoded(picture, quality)[0] / 1000 for picture in pictures])
        settings = {"form": "exact", "quality": quality}
        torch.testing.assert_close(Jpeg(JpegConfig(**settings))(to_tensor(*pictures), [""] * 3), -wanted)
        incompressible = Jpeg(JpegConfig(**settings, goal="incompressible"))
        torch.testing.assert_close(incompressible(to_tensor(*pictures), [""] * 3), wanted)
    assert not JpegConfig(form="exact").has_gradient() and JpegConfig(form="rate").has_gradient()


@pytest.mark.parametrize("quality", [50, 80, 95])
def test_the_rate_ranks_and_estimates_the_exact_size(quality):
    pictures = [scene(seed, detail) for seed in range(4) for detail in (0.0, 0.2, 0.4, 0.7, 1.0)]
    images = to_tensor(*pictures)
    exact, rate = (Jpeg(JpegConfig(form=f, quality=quality))(images, [""] * 20) for f in ("exact", "rate"))
    exact = exact + 0.6  # headers and tables, which no image can save
    assert stats.spearmanr(exact, rate).statistic > 0.98
    torch.testing.assert_close(rate, exact, rtol=0.15, atol=0)


def test_distance_is_what_soft_rounding_loses():
    images = to_tensor(scene(2, 0.6))
    coded = decode([soft_round(c) for c in coefficients(images, 20)], 20, (96, 96))
    found = Jpeg(JpegConfig(form="distance", quality=20))(images, [""])
    torch.testing.assert_close(found, -(images - coded).square().mean().sqrt()[None])
    x = torch.tensor([0.2, 1.7, -2.4])
    torch.testing.assert_close(soft_round(x), torch.tensor([0.2**3, 2 - 0.3**3, -2 - 0.4**3]))


def test_symmetry_is_zero_for_a_mirror_image_and_has_a_closed_gradient():
    half = torch.rand(1, 3, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left_right = torch.cat([half, half.flip(3)], 3)
    score = {axis: Symmetry(SymmetryConfig(axis=axis)) for axis in ("horizontal", "vertical", "both")}
    assert score["horizontal"](left_right, [""]).item() == 0
    assert score["vertical"](left_right.transpose(2, 3), [""]).item() == 0
    images = torch.rand(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    one, other, both = (score[axis](images, ["", ""]) for axis in ("horizontal", "vertical", "both"))
    torch.testing.assert_close(both, (one + other) / 2)
    (gradient,) = torch.autograd.grad(one.sum(), images)
    torch.testing.assert_close(gradient, -4 * (images - images.flip(3)).detach() / (3 * 8 * 6))


def test_colourfulness_is_its_definition_in_numpy():
    for picture in (noise(20, 30), smooth(20, 30), stripes(20, 30)):
        red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.float64), -1, 0)
        rg, yb = red - green, (red + green) / 2 - blue
        wanted = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        found = Colourfulness(ColourfulnessConfig())(to_tensor(picture).double(), [""])
        np.testing.assert_allclose(found.item(), wanted, rtol=1e-5)
    grey = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    score = Colourfulness(ColourfulnessConfig())(grey, [""])
    score.sum().backward()
    assert score.item() < 0.01 and grey.grad is not None and grey.grad.isfinite().all()


def test_sharpness_is_scipys_laplacian():
    for picture in (noise(20, 30), smooth(20, 30), stripes(20, 30)):
        luma = np.asarray(picture, dtype=np.float64) @ [0.299, 0.587, 0.114]
        found = Sharpness(SharpnessConfig())(to_tensor(picture).double(), [""])
        np.testing.assert_allclose(found.item(), ndimage.laplace(luma, mode="mirror").var(), rtol=1e-5)


def test_the_energy_of_the_gradient_is_that_of_a_ramp():
    """Luma rising by 3 levels a column and falling by 2 a row: 9 + 4, whatever the size; flat is 0."""
    rows, columns = torch.arange(6.0)[:, None], torch.arange(9.0)[None, :]
    ramp = ((100 + 3 * columns - 2 * rows) / 255).expand(1, 3, 6, 9)
    reward = Sharpness(SharpnessConfig(form="gradient"))
    assert reward(ramp.double(), [""]).item() == pytest.approx(13.0, rel=1e-5)
    assert reward(ramp[..., :1, :1], [""]).item() == 0.0


PIXEL_REWARDS = [
    Jpeg(JpegConfig(form="rate")),
    Jpeg(JpegConfig(form="distance", quality=30)),
    Symmetry(SymmetryConfig()),
    Colourfulness(ColourfulnessConfig()),
    Sharpness(SharpnessConfig()),
    Sharpness(SharpnessConfig(form="gradient")),
]


@pytest.mark.parametrize("reward", PIXEL_REWARDS, ids=lambda r: f"{r.name}-{getattr(r, 'form', '')}")
def test_the_gradient_is_that_of_finite_differences(reward, finite_differences):
    if getattr(reward, "form", "") == "distance":  # jumps where a coefficient changes its whole number
        finite_differences(reward, [""], scene(3, 0.3, 16), step=1e-8)
    else:
        finite_differences(reward, [""], scene(3, 0.3, 16), step=1e-6)

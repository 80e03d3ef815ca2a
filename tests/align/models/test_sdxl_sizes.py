"""SDXL is told where an image comes from: its own size by default, the true numbers where a cond carries them, as the
stock pipeline tells them."""

import pytest
import torch
from tiny_families import sdxl

from align.models.sdxl import SDXLConfig, StableDiffusionXL
from align.sampling import SamplingConfig
from samplers import sample

pytest.importorskip("diffusers")


def test_sizes_travel_with_the_cond():
    model = StableDiffusionXL(SDXLConfig(checkpoint="tiny"), sdxl.build(StableDiffusionXL.published[0]))
    x = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([0.3, 0.7], dtype=torch.float64), model.text.encode(["a cat", "two"])
    height, width = (side * model.codec.factor for side in x.shape[-2:])
    whole = torch.tensor([[height, width, 0, 0, height, width]] * 2)
    with torch.no_grad():
        plain = model.predict(model.network, x, t, cond)
        told = model.predict(model.network, x, t, model.with_sizes(cond, whole))
        cropped = whole.clone()
        cropped[1, 2:4] = 40
        moved = model.predict(model.network, x, t, model.with_sizes(cond, cropped)[torch.tensor([0, 1])])
    assert torch.equal(told, plain)
    torch.testing.assert_close(moved[0], plain[0])
    assert (moved[1] - plain[1]).abs().max() > 1e-4


@pytest.mark.parametrize("told", [(48, 80, 8, 4, 32, 64), (64, 32, 0, 16, 48, 32)])
def test_samples_of_a_crop_are_the_stock_pipelines(told):
    published, prompts, size = StableDiffusionXL.published[0], ["a cat", "two"], (32, 64)
    pipeline = sdxl.build(published)
    pipeline.set_progress_bar_config(disable=True)
    model = StableDiffusionXL(SDXLConfig(checkpoint="tiny"), pipeline)
    config = SamplingConfig(**{**published.sampling, "num_steps": 4, "image_size": size})
    sizes = torch.tensor([told])
    cond, uncond = (
        model.with_sizes(model.text.encode(texts), sizes.expand(len(texts), -1)) for texts in (prompts, [""])
    )
    z, grid = torch.randn(2, *model.latent_shape(size), generator=torch.Generator().manual_seed(0)), config.grid(model)
    with torch.no_grad():
        found = sample(config.guided(model.denoiser(), uncond), z * grid.init_scale, grid, cond, step=config.step()).x0
    options = {"original_size": told[:2], "crops_coords_top_left": told[2:4], "target_size": told[4:]}
    expected = sdxl.sample(pipeline, prompts, z, size, 4, config.guidance_scale, **options)
    plain = sdxl.sample(pipeline, prompts, z, size, 4, config.guidance_scale)
    assert (
        float((found - expected).norm() / expected.norm()) < 1e-4 < float((plain - expected).norm() / expected.norm())
    )

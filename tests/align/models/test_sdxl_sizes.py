"""SDXL is told where an image comes from: its own size by default, the true numbers where a cond carries them."""

import pytest
import torch
from tiny_families import sdxl

from align.models.sdxl import SDXLConfig, StableDiffusionXL

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

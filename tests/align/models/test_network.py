"""A network that is published without its pipeline takes the place of the checkpoint's; the rest stays."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import pixart, sd

from align.errors import UserError
from align.models.pixart import PixArt, PixArtConfig
from align.models.sd import SDConfig, StableDiffusion
from align.sampling import SamplingConfig, rollout
from samplers import Rng

diffusers = pytest.importorskip("diffusers")
FP32 = {"network": "fp32", "text": "fp32", "vae": "fp32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline's folder, another network in every form that one is published in, and that network."""
    root = tmp_path_factory.mktemp("networks")
    sd.build(StableDiffusion.published[0]).save_pretrained(root / "base")
    other = sd.build(StableDiffusion.published[0]).unet
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(root / "repo" / "unet")
    other.save_pretrained(root / "bare")
    other.save_pretrained(root / "pickled" / "unet", safe_serialization=False)
    save_file(other.state_dict(), root / "one.safetensors")
    return root, other


def load(root, network):
    return StableDiffusion(SDConfig(checkpoint=str(root / "base"), network=network, dtype=FP32))


@pytest.mark.parametrize("form", ["repo", "bare", "pickled", "one.safetensors"])
def test_the_network_is_replaced_and_nothing_else(form, world):
    root, other = world
    base, found = load(root, None), load(root, str(root / form))
    assert all(torch.equal(a, b) for a, b in zip(found.network.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(base.network.parameters()), next(other.parameters()))
    for name in ("vae", "text_encoder"):
        pairs = zip(found.components()[name].parameters(), base.components()[name].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_network_that_cannot_be_is_one_line(world, tmp_path):
    root, _ = world
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.network=.*only \.safetensors"):
        load(root, str(tmp_path / "net.pt"))
    save_file({"a": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"model\.network=.*could not be loaded"):
        load(root, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(UserError, match=r"model\.network=.*could not be loaded"):
        load(root, str(tmp_path))


def test_one_step_of_a_distilled_network_is_the_stock_pipelines(tmp_path):
    """As recipes/reno/pixart_dmd.yaml: a bare network, published as a pickle, and one step from its own time."""
    published = next(p for p in PixArt.published if "Sigma" not in p.checkpoint)
    stock = pixart.build(published)
    stock.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in stock.transformer.parameters():
            parameter.mul_(1.05)
    stock.transformer.save_pretrained(tmp_path / "dmd" / "transformer", safe_serialization=False)
    config = PixArtConfig(
        checkpoint=str(tmp_path / "base"), network=str(tmp_path / "dmd"), dtype=FP32, **pixart.SETTINGS
    )
    model, prompts = PixArt(config), ["a red circle", "two stars"]
    size = (64, 64)
    sampling = SamplingConfig(num_steps=1, timesteps=[400], guidance_scale=1.0, image_size=size)
    z = torch.randn(2, *model.latent_shape(size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = rollout(sampling, model, model.denoiser(), prompts, Rng(0, range(2)), x_T=z).x0
    stock.scheduler = diffusers.DDPMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    expected = pixart.sample(stock, prompts, z, size, 1, 1.0, timesteps=[400])
    assert float((found - expected).norm() / expected.norm()) < 1e-4

"""Few-step adapters merged into the base: four steps are the stock pipeline's with the adapter loaded, and what is
trained on top is used beside it."""

import importlib

import pytest
import torch
from tiny_families import sd

from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig, rollout
from samplers import Rng

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red circle", "two stars"]
KINDS = {  # as LCM-LoRA, SDXL-Lightning and Hyper-SD are used
    "lcm": ({"step_rule": "lcm"}, "LCMScheduler", {}),
    "lightning": (
        {"step_rule": "euler", "spacing": "trailing"},
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing"},
    ),
    "hyper": ({"step_rule": "ddim", "spacing": "trailing"}, "DDIMScheduler", {"timestep_spacing": "trailing"}),
}


def pipeline():
    diffusers.logging.set_verbosity_error()
    made = sd.build(StableDiffusion.published[0])
    made.set_progress_bar_config(disable=True)
    return made


def drawn(model, seed):
    adapter = Adapter(AdapterConfig(rank=2, alpha=3.0), model.network, list(model.lora_targets), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in adapter.state_dict().items():
        if "lora_B" in name:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return adapter


@pytest.fixture(scope="module")
def few_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few-step")
    drawn(StableDiffusion(SDConfig(checkpoint="tiny"), pipeline()), 2).export(folder)
    return folder


def noise(model):
    return torch.randn(2, *model.latent_shape((32, 32)), generator=torch.Generator().manual_seed(1))


def ours(model, chosen):
    config = SamplingConfig(num_steps=4, guidance_scale=1.0, image_size=(32, 32), **chosen)
    with torch.no_grad():
        return rollout(config, model, model.denoiser(), PROMPTS, Rng(0, range(2)), x_T=noise(model)).x0


def theirs(stock, z, name, settings):
    """Where its scheduler draws noise, it is handed ours."""
    stock.scheduler = getattr(diffusers, name).from_config(stock.scheduler.config, **settings)
    module, numbers = importlib.import_module(type(stock.scheduler).__module__), iter(range(4))

    def randn_tensor(shape, *, dtype, **_):
        return Rng(0, range(len(z))).normal(f"step/{next(numbers)}", z).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", randn_tensor)
        return sd.sample(stock, PROMPTS, z, (32, 32), 4, 1.0)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_four_steps_are_the_stock_pipelines_with_the_adapter_loaded(kind, few_step):
    chosen, name, settings = KINDS[kind]
    model = StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(few_step)), pipeline())
    found = ours(model, chosen)
    stock = pipeline()
    stock.load_lora_weights(str(few_step))
    assert difference(found, theirs(stock, noise(model), name, settings)) < 1e-4
    assert difference(found, ours(StableDiffusion(SDConfig(checkpoint="tiny"), pipeline()), chosen)) > 1e-2


def test_what_is_trained_on_top_is_used_beside_it(few_step, tmp_path):
    chosen, name, settings = KINDS["lightning"]
    model = StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(few_step)), pipeline())
    base = ours(model, chosen)
    adapter = drawn(model, 5)
    found = ours(model, chosen)
    with adapter.disabled():
        assert torch.equal(ours(model, chosen), base)
    adapter.export(tmp_path)
    stock = pipeline()
    stock.load_lora_weights(str(few_step), adapter_name="few-step")
    stock.load_lora_weights(str(tmp_path), adapter_name="trained")
    stock.set_adapters(["few-step", "trained"])
    assert difference(found, theirs(stock, noise(model), name, settings)) < 1e-4
    assert difference(found, base) > 1e-2

"""The adapter's file in a stock pipeline: the same images as our policy, at any alpha, rsLoRA and DoRA."""

import pytest
import torch
from align_toys import randomise

from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig, rollout
from samplers import Rng

PROMPTS = ["a red circle", "two stars"]
KINDS = [
    {"rank": 4, "alpha": 4},
    {"rank": 4, "alpha": 16},
    {"rank": 4, "alpha": 3, "rslora": True},
    {"rank": 4, "alpha": 10, "dora": True},
]
SAMPLING = SamplingConfig(num_steps=5, guidance_scale=3.0)


def ours(pipeline, kind, path):
    """Images (2, 3, 32, 32) of the policy's two roles; its adapter is exported to `path`."""
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline)
    adapter = Adapter(AdapterConfig(**kind), model.network, list(model.lora_targets), seed=0)
    randomise(adapter, scale=0.1)
    adapter.export(path)
    policy = Policy(model, adapter)
    with torch.no_grad():
        return [
            model.codec.decode(rollout(SAMPLING, model, policy.role(r), PROMPTS, Rng(0, range(2))).x0)
            for r in ("train", "reference")
        ]


def stock(pipeline):
    latents = Rng(0, range(2)).normal("x_T", torch.empty(2, 4, 8, 8))
    images = pipeline(PROMPTS, latents=latents, num_inference_steps=5, guidance_scale=3.0, output_type="pt").images
    return torch.as_tensor(images)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_stock_pipeline_draws_the_same_images(tiny_sd_factory, tmp_path, kind):
    trained, reference = ours(tiny_sd_factory(), kind, tmp_path)
    assert (trained - reference).abs().max() > 0.02  # the adapter does something
    pipeline = tiny_sd_factory()
    before = stock(pipeline)
    pipeline.load_lora_weights(str(tmp_path), adapter_name="align")
    torch.testing.assert_close(stock(pipeline), trained, rtol=0, atol=1e-4)
    if not kind.get("dora"):  # diffusers' strength leaves DoRA's trained norms in place
        pipeline.set_adapters("align", 0.0)
        assert torch.equal(stock(pipeline), before)
    pipeline.unload_lora_weights()
    assert torch.equal(stock(pipeline), before)

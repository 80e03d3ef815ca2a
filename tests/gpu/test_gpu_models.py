"""What a GPU changes of the model families: kernels, half precision, quantised bases, off-loading, compilation."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_families import flux, parts, sd, sdxl

from align.models._pipeline import PipelineModel
from align.models._quantize import METHODS, QuantisedLinear, size
from align.models.flux import Flux, FluxConfig
from align.models.sd import SDConfig, StableDiffusion
from align.models.sdxl import SDXLConfig, StableDiffusionXL
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.registry import MODELS
from align.sampling import SamplingConfig, rollout
from samplers import Rng, last

pytest.importorskip("diffusers")
DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PROMPTS = ["a red circle", "two stars"]
FAMILIES = [name for name in MODELS.names() if issubclass(MODELS.get(name), PipelineModel)]
BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "full_size.py"


def build(name, dtype=torch.float32, **settings):
    """The family's first tiny pipeline on the GPU, network and text in `dtype`; its autoencoder in float32."""
    family, tiny = MODELS.get(name), importlib.import_module(f"tiny_families.{name}")
    pipeline = tiny.build(family.published[0])
    for component, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and component != "vae":
            module.to(dtype)
    model = family(family.Config(checkpoint="tiny", **{**tiny.SETTINGS, **settings}), pipeline)
    return model.to(DEVICE)


def with_adapter(model):
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, value in adapter.state_dict().items():
        if "lora_B" in name:
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return adapter


def noise(model):
    shape = model.latent_shape(parts.SIZES[0])
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(
        next(model.network.parameters()).device
    )


def outputs(model):
    return model.denoiser()(noise(model), torch.tensor(0.6), model.text.encode(PROMPTS))


def gradient(model, adapter):
    """Of one call, all of the adapter's as one vector."""
    outputs(model).square().mean().backward()
    return torch.cat([p.grad.flatten().cpu() for p in adapter.parameters() if p.grad is not None])


def difference(found, expected):
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("attention", ["xformers", "flash"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_kernels_gradients_are_sdpas_through_the_adapter_and_checkpointing(name, attention):
    pytest.importorskip({"xformers": "xformers", "flash": "flash_attn"}[attention])
    if (name, attention) == ("sd", "flash"):
        pytest.skip("diffusers has no flash kernel for UNets")
    found = []
    for chosen in ("sdpa", attention):
        model = build(name, torch.bfloat16, attention=chosen, checkpoint_blocks=True)
        found.append(gradient(model, with_adapter(model)))
    assert difference(found[1], found[0]) < 2e-2  # two roundings in bf16


def test_xformers_gradients_are_sdpas_in_float32():
    pytest.importorskip("xformers")
    found = []
    for attention in ("sdpa", "xformers"):
        model = build("sd", attention=attention, checkpoint_blocks=True)
        found.append(gradient(model, with_adapter(model)))
    assert difference(found[1], found[0]) < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_in_bf16_samples_and_trains(name):
    """What it gives is near float32's, and the gradient of a decoded sample reaches the float32 adapter."""
    sampling = {**MODELS.get(name).published[0].sampling, "num_steps": 2, "image_size": parts.SIZES[0]}
    decoded = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(name, dtype)
        adapter = with_adapter(model)
        rng = Rng(0, range(2))
        found = rollout(
            SamplingConfig(**sampling), model, model.denoiser(), PROMPTS, rng, grad=last(1), x_T=noise(model)
        )
        pixels = model.codec.decode(found.x0)
        pixels.mean().backward()
        decoded.append(pixels)
    gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)
    assert difference(decoded[1], decoded[0]) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_base_is_the_same_on_the_gpu_and_its_adapter_trains_there(method):
    pytest.importorskip(METHODS[method].package)
    on_cpu = Flux(FluxConfig(checkpoint="tiny", **flux.SETTINGS, quantize=method), flux.build(Flux.published[0]))
    expected = outputs(on_cpu), gradient(on_cpu, with_adapter(on_cpu))
    model = build("flux", quantize=method)
    found = outputs(model), gradient(model, with_adapter(model))
    assert difference(found[0], expected[0]) < 1e-3 and difference(found[1], expected[1]) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_layer_takes_the_memory_that_it_says(method):
    pytest.importorskip(METHODS[method].package)
    layer = QuantisedLinear(torch.nn.Linear(4096, 4096, dtype=torch.bfloat16), METHODS[method]).requires_grad_(False)
    before = torch.cuda.memory_allocated()
    layer.to(DEVICE)
    assert torch.cuda.memory_allocated() - before == pytest.approx(size(layer)[1], rel=0.01)
    x = torch.randn(8, 4096, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    held = torch.cuda.memory_allocated()
    out = layer(x)
    assert torch.cuda.memory_allocated() - held < 2**20  # the graph keeps no weight: that would be 32 MiB
    out.sum().backward()
    assert difference(x.grad, layer.weight.float().sum(0).expand(8, -1)) < 2e-2


def test_off_loaded_encoders_leave_the_gpu_and_their_prompts_stay_on_it():
    model, kept = build("sd", offload_text=True), build("sd")
    cond = model.text.encode(PROMPTS)
    assert next(model.components()["text_encoder"].parameters()).device.type == "cpu"
    assert cond.tensors["text"].device.type == torch.device(DEVICE).type
    torch.testing.assert_close(cond.tensors["text"], kept.text.encode(PROMPTS).tensors["text"])


def test_compiled_blocks_give_what_the_others_give():
    model = build("flux")
    with torch.no_grad():
        expected = outputs(model)
        model.compile()
        assert difference(outputs(model), expected) < 1e-3


def test_sdxls_autoencoder_does_not_overflow_in_a_run_in_fp16():
    pipeline = sdxl.build(StableDiffusionXL.published[0]).to(torch.float16)
    model = StableDiffusionXL(SDXLConfig(checkpoint="tiny"), pipeline).to(DEVICE)
    x0 = 1e3 * noise(model)
    assert bool(model.codec.decode(x0).isfinite().all()) and model.network_dtype == torch.float16


def test_samples_on_the_gpu_are_the_cpus():
    on_cpu = StableDiffusion(SDConfig(checkpoint="tiny"), sd.build(StableDiffusion.published[0]))
    config = SamplingConfig(num_steps=4, guidance_scale=5.0, image_size=parts.SIZES[0])
    with torch.no_grad():
        found = [rollout(config, m, m.denoiser(), PROMPTS, Rng(0, range(2))).x0 for m in (on_cpu, build("sd"))]
    assert difference(found[1], found[0]) < 1e-3


def test_the_benchmark_of_published_sizes_says_its_peak():
    narrow = json.dumps({"block_out_channels": [32, 32, 32, 32]})
    command = [sys.executable, "-P", str(BENCH), "stable-diffusion-v1-5/stable-diffusion-v1-5", "--size", "64", "64"]
    options = ["--turns", "1", "--num-steps", "2", "--network", narrow, "--vae", narrow, "--device", DEVICE]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]
    assert all(json.loads(line)["peak_gib"] > 0 for line in result.stdout.splitlines())

"""A quantised frozen base: what is kept, what it computes, what trains on it, and that the adapter serves elsewhere."""

import importlib

import pytest
import torch
from tiny_families import flux, sd

from align.errors import UserError
from align.models import _quantize
from align.models._quantize import METHODS, QuantisedLinear, size
from align.models.flux import Flux, FluxConfig
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.share.export import in_float32
from samplers import Grid, last, sample

pytest.importorskip("diffusers")

PROMPTS = ["a red circle", "two stars"]
KEPT = {"nf4": 4.5 / 8, "int8": 1 + 4 / 256, "torchao-int8": 1 + 5 / 256}  # bytes a weight of a layer of 256 inputs
ERROR = {"nf4": 0.1, "int8": 0.01, "torchao-int8": 0.01}  # relative, of normal weights


@pytest.fixture(params=METHODS)
def method(request):
    pytest.importorskip(METHODS[request.param].package)
    return request.param


def linear(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(256, 64).to(dtype)


def tiny_flux(**settings):
    config = FluxConfig(checkpoint="tiny", **flux.SETTINGS, **settings)
    return Flux(config, flux.build(Flux.published[0]))


def with_adapter(model):
    component = "unet" if isinstance(model, StableDiffusion) else "transformer"
    targets = list(model.lora_targets)
    adapter = Adapter(AdapterConfig(rank=2, alpha=3.0), model.network, targets, component=component, seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, value in adapter.state_dict().items():
        if "lora_B" in name:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return adapter


def noise(model, dtype=torch.float32):
    return torch.randn(2, *model.latent_shape((32, 32)), generator=torch.Generator().manual_seed(1)).to(dtype)


def outputs(model):
    with torch.no_grad():
        return model.denoiser()(noise(model), torch.tensor(0.6), model.text.encode(PROMPTS))


def difference(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_a_layer_keeps_few_bytes_and_is_near_what_it_was(method):
    plain = linear()
    layer = QuantisedLinear(plain, METHODS[method])
    number, kept = size(layer)
    assert number == 64 * 256 + 64
    assert kept - 4 * 64 == pytest.approx(KEPT[method] * 64 * 256, rel=0.02)  # torchao 0.15 hides the scales
    assert 1e-4 < difference(layer.weight, plain.weight) < ERROR[method]
    x = torch.randn(3, 256)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, plain.bias))


def test_the_gradient_reaches_the_input_and_the_graph_keeps_no_weight(method):
    layer = QuantisedLinear(linear(torch.bfloat16), METHODS[method]).requires_grad_(False)
    x = torch.randn(3, 256, requires_grad=True, dtype=torch.bfloat16)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: stored.append(tensor.numel()) or tensor, lambda t: t):
        out = layer(x)
    assert sum(stored) < layer.weight.numel() / 8
    out.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1), rtol=2e-2, atol=2e-2)


def test_a_cast_changes_the_products_precision_and_not_the_weight(method):
    layer = QuantisedLinear(linear(), METHODS[method])
    before = layer.weight
    assert layer.to(torch.float16).weight.dtype == torch.float16
    assert torch.equal(layer.float().weight, before)
    assert layer.to("meta").weight.device.type == "meta"


def test_every_linear_layer_is_quantised_but_those_kept_in_float32(method):
    model = tiny_flux(quantize=method)
    kinds = {type(module) for module in model.network.modules() if isinstance(module, torch.nn.Linear)}
    assert kinds == {QuantisedLinear} and model.network_dtype == torch.float32
    network = flux.build(Flux.published[0]).transformer
    network._keep_in_fp32_modules = ["proj_out"]
    _quantize.quantise(network, method)
    plain = [name for name, module in network.named_modules() if type(module) is torch.nn.Linear]
    assert plain and all("proj_out" in name for name in plain)


def test_an_adapter_on_it_has_the_gradient_of_finite_differences(method):
    """Through the last two of three steps, in float64; and the base's weights have none."""
    pipeline = flux.build(Flux.published[0])
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).double()
    model = Flux(FluxConfig(checkpoint="tiny", **flux.SETTINGS, quantize=method), pipeline)
    adapter = with_adapter(model)
    times, cond = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64), model.text.encode(PROMPTS)
    z = noise(model, torch.float64)
    reader = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).double()

    def read(x, times, grad):
        return (sample(model.denoiser(), x, Grid(times), cond, grad=grad).x0 * reader).sum()

    read(z, times, last(2)).backward()
    trained = adapter.parameters()
    assert all(p.grad is None for name, p in model.network.named_parameters() if ".lora_" not in name)
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(p.shape, generator=generator).to(p) for p in trained]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, directions, strict=True) if p.grad is not None)
    with torch.no_grad():
        boundary, values = sample(model.denoiser(), z, Grid(times[:2]), cond).x0, []
        for sign in (1, -2):
            for parameter, direction in zip(trained, directions, strict=True):
                parameter += sign * 1e-4 * direction
            values.append(float(read(boundary, times[1:], last(0))))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_the_reference_is_the_quantised_base_bit_for_bit(method, dora):
    model = tiny_flux(quantize=method)
    base = outputs(model)
    assert 1e-4 < difference(base, outputs(tiny_flux())) < 0.5
    targets = list(model.lora_targets)
    adapter = Adapter(AdapterConfig(rank=2, dora=dora), model.network, targets, component="transformer", seed=0)
    optimiser = torch.optim.SGD(adapter.parameters(), lr=1.0)
    for _ in range(2):  # the first moves B alone
        model.denoiser()(noise(model), torch.tensor(0.6), model.text.encode(PROMPTS)).square().mean().backward()
        optimiser.step()
    assert difference(outputs(model), base) > 1e-3
    with adapter.disabled():
        assert torch.equal(outputs(model), base)


def test_the_adapter_trained_on_it_loads_in_the_stock_pipeline_as_it_was_published(method, tmp_path):
    """There it gives what it gives on our plain base: the file says nothing of how the base was kept."""
    quantised, plain = tiny_flux(quantize=method), tiny_flux()
    with_adapter(quantised).export(tmp_path)
    with_adapter(plain)
    pipeline = flux.build(Flux.published[0])
    plain.load_adapter(pipeline, tmp_path)
    stock = Flux(FluxConfig(checkpoint="tiny", **flux.SETTINGS), pipeline)
    torch.testing.assert_close(outputs(stock), outputs(plain), rtol=1e-4, atol=1e-5)
    pipeline = quantised.to_pipeline()
    assert pipeline.transformer is quantised.network


def test_torchaos_weights_are_those_of_a_pipeline_that_diffusers_quantises(tmp_path):
    pytest.importorskip("torchao")
    import diffusers
    from torchao.quantization import Int8WeightOnlyConfig

    flux.build(Flux.published[0]).transformer.save_pretrained(tmp_path)
    config = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(
        tmp_path, quantization_config=config, torch_dtype=torch.float32
    )
    ours = tiny_flux(quantize="torchao-int8")
    wanted = {n: m.weight.dequantize() for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {n: m.weight for n, m in ours.network.named_modules() if isinstance(m, torch.nn.Linear)}
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    pipeline = flux.build(Flux.published[0])
    pipeline.transformer = theirs
    stock = Flux(FluxConfig(checkpoint="tiny", **flux.SETTINGS), pipeline)
    torch.testing.assert_close(outputs(ours), outputs(stock), rtol=1e-4, atol=1e-5)


def test_a_merged_base_adapter_is_quantised_with_the_base(method, tmp_path):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), sd.build(StableDiffusion.published[0]))
    with_adapter(model).export(tmp_path)
    settings = {"checkpoint": "tiny", "quantize": method}
    merged = StableDiffusion(SDConfig(**settings, base_adapter=str(tmp_path)), sd.build(StableDiffusion.published[0]))
    without = StableDiffusion(SDConfig(**settings), sd.build(StableDiffusion.published[0]))
    assert difference(outputs(merged), outputs(model)) < 0.5 * difference(outputs(without), outputs(model))


def test_a_quantised_network_is_not_written(method, tmp_path):
    with pytest.raises(UserError, match="quantised network is not written"):
        tiny_flux(quantize=method).to_pipeline().save_pretrained(tmp_path)


def test_an_adapter_is_merged_into_the_whole_weights():
    config = in_float32(FluxConfig(checkpoint="a/b", quantize="nf4"))
    assert config.quantize is None and config.dtype.network == "fp32"


def test_without_its_package_it_is_refused_in_one_line(method, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = FluxConfig(checkpoint="a/b", quantize=method)
    assert not [*config.conflicts({})], "a plan needs no package"
    with pytest.raises(UserError, match=f"model.quantize={method}: {method} needs the package") as caught:
        Flux(config)  # before anything is loaded
    assert METHODS[method].package in str(caught.value) and "diffalign[" in str(caught.value)
    with pytest.raises(UserError, match=f"model.quantize={method}: {method} needs the package"):
        tiny_flux(quantize=method)

"""What every family promises, held on a tiny pipeline of random weights for each published checkpoint.

A family is tested by existing: `tests/tiny_families/NAME.py` builds its tiny pipeline and calls the stock one.
"""

import functools
import importlib
import inspect
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from align.models._pipeline import PipelineModel
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.registry import MODELS
from align.sampling import SamplingConfig, rollout
from samplers import Grid, Rng, add_noise, broadcast, last, sample, target

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red circle", "two stars, blue"]
FAMILIES = [name for name in MODELS.names() if issubclass(MODELS.get(name), PipelineModel)]
CASES = [(name, published) for name in FAMILIES for published in MODELS.get(name).published]
FIRST = [(name, MODELS.get(name).published[0]) for name in FAMILIES]
STEP = 1e-6  # of the finite difference, in float64


def ids(case):
    return f"{case[0]}-{case[1].checkpoint.split('/')[1]}"


def tiny(name):
    return importlib.import_module(f"tiny_families.{name}")


def fresh(case):
    name, published = case
    diffusers.logging.set_verbosity_error()
    pipeline = tiny(name).build(published)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def _built(name, index):
    return fresh((name, MODELS.get(name).published[index]))


def built(case):
    """The pipeline, made once: what a test changes it makes afresh."""
    name, published = case
    return _built(name, MODELS.get(name).published.index(published))


def wrap(case, pipeline):
    family = MODELS.get(case[0])
    return family(family.Config(checkpoint="tiny", **tiny(case[0]).SETTINGS), pipeline)


def noise(model, size, rows=2, dtype=torch.float32):
    shape = model.latent_shape(size)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def sampling(case, size, num_steps, guidance=None):
    chosen = {**case[1].sampling, "num_steps": num_steps, "image_size": size}
    return SamplingConfig(**chosen if guidance is None else {**chosen, "guidance_scale": guidance})


def ours(case, model, z, size, num_steps, prompts=PROMPTS, guidance=None):
    config = sampling(case, size, num_steps, guidance)
    with torch.no_grad():
        return rollout(config, model, model.denoiser(), prompts, Rng(0, range(len(z))), x_T=z).x0


def theirs(case, pipeline, z, size, num_steps, prompts=PROMPTS, guidance=None, **options):
    """The stock pipeline's; where its scheduler draws noise, it is handed ours."""
    module = importlib.import_module(type(pipeline.scheduler).__module__)
    drawn = iter(range(num_steps))

    def randn_tensor(shape, *, dtype, **_):
        return Rng(0, range(len(z))).normal(f"step/{next(drawn)}", z).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", randn_tensor)
        guidance = case[1].sampling["guidance_scale"] if guidance is None else guidance
        return tiny(case[0]).sample(pipeline, list(prompts), z, size, num_steps, guidance, **options)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_every_family_has_a_tiny_pipeline():
    there = {path.stem for path in (Path(__file__).parents[2] / "tiny_families").glob("*.py")} - {"parts"}
    assert there == set(FAMILIES)


@pytest.mark.parametrize("num_steps", [4, 10, 28])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_samples_are_the_stock_pipelines(case, num_steps):
    pipeline = built(case)
    model = wrap(case, pipeline)
    sizes = tiny(case[0]).SIZES  # all of them at few steps; many steps are dear, and each number meets another size
    for size in sizes if num_steps == 4 else sizes[-1:] if num_steps == 10 else sizes[:1]:
        z = noise(model, size)
        found = ours(case, model, z, size, num_steps)
        assert difference(found, theirs(case, pipeline, z, size, num_steps)) < 1e-4


def guidable(case):
    """Published without guidance, and its pipeline takes it all the same."""
    return case[1].sampling["guidance_scale"] == 1 and case[1].checkpoint not in getattr(tiny(case[0]), "UNGUIDED", ())


@pytest.mark.parametrize("case", [case for case in CASES if guidable(case)], ids=ids)
def test_guidance_of_what_is_published_without_is_the_stock_pipelines(case):
    """FLUX.1's is its true_cfg_scale, beside the guidance that dev is told."""
    pipeline = built(case)
    model = wrap(case, pipeline)
    size = tiny(case[0]).SIZES[1]
    z = noise(model, size)
    found = ours(case, model, z, size, 4, guidance=3.0)
    assert difference(found, theirs(case, pipeline, z, size, 4, guidance=3.0)) < 1e-4
    assert difference(found, ours(case, model, z, size, 4)) > 1e-2


@pytest.mark.parametrize("case", [case for case in FIRST if MODELS.get(case[0]).takes_negative], ids=ids)
def test_a_negative_prompt_is_read_as_the_stock_pipeline_reads_it(case):
    pipeline = built(case)
    model, size = wrap(case, pipeline), tiny(case[0]).SIZES[1]
    z = noise(model, size)
    config = sampling(case, size, 4, 3.0).model_copy(update={"negative_prompt": "blue, two"})
    with torch.no_grad():
        found = rollout(config, model, model.denoiser(), PROMPTS, Rng(0, [0, 1]), x_T=z).x0
    assert difference(found, theirs(case, pipeline, z, size, 4, guidance=3.0, negative_prompt=["blue, two"] * 2)) < 1e-4
    assert difference(found, ours(case, model, z, size, 4, guidance=3.0)) > 1e-3


def test_a_family_takes_a_negative_prompt_where_its_pipeline_does():
    for name in FAMILIES:
        family = MODELS.get(name)
        taken = inspect.signature(getattr(diffusers, family.pipelines[0]).__call__).parameters
        assert family.takes_negative == ("negative_prompt" in taken), name


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_wrong_time_would_be_seen(case):
    """The tolerance above means something: a tenth of a time step too many is twenty times as far off."""
    pipeline = built(case)
    model = wrap(case, pipeline)
    size = tiny(case[0]).SIZES[0]
    z = noise(model, size)
    right = ours(case, model, z, size, 4)
    predict = model.predict
    model.predict = lambda network, x_t, t, cond: predict(network, x_t, 0.9 * t, cond)
    assert difference(ours(case, model, z, size, 4), right) > 2e-3


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_pixels_are_the_stock_pipelines(case):
    pipeline = built(case)
    model = wrap(case, pipeline)
    size = tiny(case[0]).SIZES[1]
    z = noise(model, size)
    pixels = model.codec.decode(ours(case, model, z, size, 4))
    assert pixels.shape == (2, 3, *size)
    torch.testing.assert_close(pixels, theirs(case, pipeline, z, size, 4, output_type="pt"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_latents_of_an_image_decode_to_it_as_the_autoencoder_does(case):
    pipeline = built(case)
    model = wrap(case, pipeline)
    size = tiny(case[0]).SIZES[1]
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    posterior = model.codec.encode(pixels)
    assert posterior.mean.shape == (1, *model.latent_shape(size)) == posterior.logvar.shape
    again = model.codec.decode(posterior.mean)
    torch.testing.assert_close(again, tiny(case[0]).reconstruct(pipeline, pixels), rtol=1e-4, atol=1e-4)


def with_adapter(model, *, drawn=True):
    name = next(name for name, module in model.components().items() if module is model.network)
    adapter = Adapter(AdapterConfig(rank=2, alpha=3.0), model.network, list(model.lora_targets), component=name, seed=0)
    if drawn:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for key, value in adapter.state_dict().items():
                if "lora_B" in key:
                    value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_the_adapter_works_in_the_stock_pipeline_and_the_reference_is_the_base(case, tmp_path):
    size = tiny(case[0]).SIZES[0]
    model = wrap(case, fresh(case))
    z = noise(model, size)
    base = ours(case, model, z, size, 4)
    adapter = with_adapter(model)
    trained = ours(case, model, z, size, 4)
    assert difference(trained, base) > 1e-2
    with adapter.disabled():
        assert torch.equal(ours(case, model, z, size, 4), base)
    adapter.export(tmp_path)
    pipeline = fresh(case)
    model.load_adapter(pipeline, tmp_path)
    assert difference(theirs(case, pipeline, z, size, 4), trained) < 1e-4


@contextmanager
def wide():
    """Where the libraries go through float32 (rotations, norms, times, linear attention), they go through float64."""
    narrow = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        return narrow(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_gradients_of_the_last_steps_are_finite_differences_on_the_adapter_alone(case):
    """In float64 throughout, against a central difference."""
    pipeline = fresh(case)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(torch.float64)
    model = wrap(case, pipeline)
    adapter = with_adapter(model)
    size = tiny(case[0]).SIZES[0]
    z = noise(model, size, dtype=torch.float64)
    config = sampling(case, size, 3)
    times, cond, uncond = config.grid(model).times, model.text.encode(PROMPTS), model.text.encode([""])
    denoiser = config.guided(model.denoiser(), uncond)
    reader = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2)).double()

    def read(x, times, grad):
        return (model.codec.decode(sample(denoiser, x, Grid(times), cond, grad=grad).x0) * reader).sum()

    with wide():
        read(z, times, last(2)).backward()
    trained = adapter.parameters()
    assert sum(float(p.grad.abs().sum()) for p in trained if p.grad is not None) > 0
    assert all(
        p.grad is None for m in model.components().values() for n, p in m.named_parameters() if ".lora_" not in n
    )
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(p.shape, generator=generator).to(p) for p in trained]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, directions, strict=True) if p.grad is not None)
    with wide(), torch.no_grad():
        boundary = sample(denoiser, z, Grid(times[:2]), cond).x0
        values = []
        for sign in (1, -2):
            for parameter, direction in zip(trained, directions, strict=True):
                parameter += sign * STEP * direction
            values.append(float(read(boundary, times[1:], last(0))))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_batch_of_prompts_is_its_prompts_one_by_one(case):
    model = wrap(case, built(case))
    size = tiny(case[0]).SIZES[1]
    z, t = noise(model, size), torch.tensor([0.9, 0.4])
    with torch.no_grad():
        together = model.denoiser()(z, t, model.text.encode(PROMPTS))
        alone = [model.denoiser()(z[i : i + 1], t[i : i + 1], model.text.encode([PROMPTS[i]])) for i in (0, 1)]
        other = model.denoiser()(z, t, model.text.encode(PROMPTS[::-1]))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert difference(other, together) > 1e-3  # the prompt matters


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_an_identical_pair_has_loss_log_2_and_no_gradient(case):
    model = wrap(case, fresh(case))
    adapter = with_adapter(model)
    size = tiny(case[0]).SIZES[0]
    eps, t, cond = noise(model, size), torch.tensor([0.7, 0.3]), model.text.encode(PROMPTS)
    x0 = model.codec.encode(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))).mean
    x_t = add_noise(model.schedule, x0, eps, t)
    alpha_t, sigma_t = (broadcast(c, x0) for c in model.schedule(t))
    wanted = target(x0, eps, alpha_t, sigma_t, model.kind)

    def gap():
        with adapter.disabled(), torch.no_grad():
            reference = (model.denoiser()(x_t, t, cond) - wanted).square().flatten(1).mean(1)
        return (model.denoiser()(x_t, t, cond) - wanted).square().flatten(1).mean(1) - reference

    winner = gap()
    assert bool((winner.abs() > 1e-6).all())  # the adapter is not the identity
    loss = -logsigmoid(-2000 * (winner - gap())).mean()
    loss.backward()
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)
    assert all(float(p.grad.abs().max()) < 1e-4 for p in adapter.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_a_saved_pipeline_loads_as_this_family_and_by_auto(case, tmp_path):
    pipeline = built(case)
    pipeline.save_pretrained(tmp_path / "tiny")
    model, size = wrap(case, pipeline), tiny(case[0]).SIZES[0]
    z, t = noise(model, size), torch.tensor(0.6)
    family = MODELS.get(case[0])
    loaded = family(family.Config(checkpoint=str(tmp_path / "tiny"), **tiny(case[0]).SETTINGS))
    with torch.no_grad():
        expected = model.denoiser()(z, t, model.text.encode(PROMPTS))
        assert torch.equal(loaded.denoiser()(z, t, loaded.text.encode(PROMPTS)), expected)
    found = MODELS.get("auto")(MODELS.config_class("auto")(checkpoint=str(tmp_path / "tiny")))
    assert type(found) is type(model) and found.text.fingerprint() == model.text.fingerprint()


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_a_pipeline_made_of_a_model_keeps_the_flags_of_its_own(case):
    """FLUX.2-klein's is_distilled and SDXL's force_zeros_for_empty_prompt change what a stock call computes."""
    pipeline = fresh(case)
    flags = {name: not value for name, value in pipeline.config.items() if isinstance(value, bool)}
    pipeline.register_to_config(**flags)  # none as its class would have it
    model = wrap(case, pipeline)
    made = model.to_pipeline().config
    assert {name: made[name] for name in flags} == {**flags, **model.constructor}


@pytest.mark.parametrize("case", FIRST, ids=ids)
def test_targets_exist_and_sizes_must_fit(case):
    model = wrap(case, built(case))
    names = [name for name, _ in model.network.named_modules()]
    assert all(any(name.endswith("." + wanted) for name in names) for wanted in model.lora_targets)
    multiple = model.codec.factor * model.patch
    assert model.latent_shape((multiple, 2 * multiple))[1:] == (model.patch, 2 * model.patch)
    with pytest.raises(Exception, match=f"multiples of {multiple}"):
        model.latent_shape((multiple, 2 * multiple + multiple // 2))


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_stock_pipeline_is_asked_by_the_names_it_has(case, monkeypatch):
    """Guidance as it counts it, and the length of prompts, are those that give our images in the tests above."""
    pipeline, given = built(case), {}
    model, size = wrap(case, pipeline), tiny(case[0]).SIZES[0]
    called = type(pipeline).__call__
    monkeypatch.setattr(type(pipeline), "__call__", lambda self, *a, **k: given.update(k) or called(self, *a, **k))
    theirs(case, pipeline, noise(model, size), size, 2, guidance=3.0)
    config = model.settings.model_copy(update={"checkpoint": case[1].checkpoint})
    asked = type(model).asked(config, 3.0)
    assert asked.keys() & {"guidance_scale", "true_cfg_scale"}
    for key, value in asked.items():
        if key == "max_sequence_length" and key not in given:
            continue  # longer than these prompts, and masked
        told = given.get(key, inspect.signature(called).parameters[key].default)
        assert (told[0] if isinstance(told, list) else told) == value, key

"""The Stable Diffusion bundle: where it loads from, what it says when it cannot, and what it is made of."""

import json
import shutil
import socket
import warnings

import pytest
import torch

from align.errors import UserError
from align.models._base import Dtypes
from align.models.sd import SDConfig, StableDiffusion
from align.registry import MODELS
from samplers import Prediction, TensorCond

PROMPTS = ["a red circle", "two stars"]


@pytest.fixture(scope="module")
def pipeline(tiny_sd_factory):
    return tiny_sd_factory()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("sd") / "tiny"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def model(folder):
    return StableDiffusion(SDConfig(checkpoint=str(folder)))


@pytest.fixture
def no_network(monkeypatch):
    """The Hub may be asked, and every attempt at it, even one that is swallowed, fails the test."""
    import diffusers.utils.hub_utils
    from huggingface_hub import constants

    attempts = []

    def refuse(*args, **_):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(diffusers.utils.hub_utils, "HF_HUB_OFFLINE", False)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert attempts == []


def edit(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **changes}))


def same_weights(model, pipeline):
    pairs = [(model.components()[name], getattr(pipeline, name)) for name in ("unet", "vae", "text_encoder")]
    return all(
        torch.equal(ours, theirs)
        for module, other in pairs
        for ours, theirs in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_registry_finds_the_family():
    assert MODELS.get("sd") is StableDiffusion and StableDiffusion.Config is SDConfig
    assert MODELS.look_up({"name": "sd", "checkpoint": "x/y"}) == SDConfig(checkpoint="x/y")


def test_a_local_folder_loads_without_network(folder, pipeline, no_network):
    model = StableDiffusion(SDConfig(checkpoint=str(folder)))
    assert same_weights(model, pipeline) and model.source == str(folder)
    assert model.text.encode(PROMPTS).tensors["text"].shape == (2, 16, 16)


def test_a_single_file_loads_without_network_from_its_config_folder(folder, pipeline, tmp_path, no_network):
    from safetensors.torch import save_file
    from tiny_sd_ldm import ldm_state_dict

    path = tmp_path / "tiny.safetensors"
    save_file(ldm_state_dict(pipeline), path)
    configs = shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    model = StableDiffusion(SDConfig(checkpoint=str(path), config_dir=str(configs), dtype=Dtypes(network="bf16")))
    assert model.network_dtype == torch.bfloat16 and model.codec.vae.dtype == torch.float32
    full = StableDiffusion(SDConfig(checkpoint=str(path), config_dir=str(configs), dtype=Dtypes(network="fp32")))
    assert same_weights(full, pipeline)


def test_half_precision_weights_on_disk_run_in_float32_on_a_cpu(pipeline, tmp_path, tiny_sd_factory):
    half = tiny_sd_factory()
    for module in (half.unet, half.vae, half.text_encoder):
        module.half()
    half.save_pretrained(tmp_path / "half")
    model = StableDiffusion(SDConfig(checkpoint=str(tmp_path / "half"), dtype=Dtypes(network="fp32", text="fp32")))
    assert {module.dtype for module in model.components().values()} == {torch.float32}
    assert torch.equal(model.network.conv_in.weight, pipeline.unet.conv_in.weight.half().float())


def test_a_variant_is_preferred_where_it_exists(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "v", variant="fp16")
    model = StableDiffusion(SDConfig(checkpoint=str(tmp_path / "v"), variant="fp16"))
    assert same_weights(model, pipeline)
    with pytest.raises(UserError, match="variant=bf16"):
        StableDiffusion(SDConfig(checkpoint=str(tmp_path / "v"), variant="bf16"))


def test_each_component_has_its_own_dtype(folder):
    model = StableDiffusion(SDConfig(checkpoint=str(folder), dtype=Dtypes(network="bf16", text="fp16", vae="fp32")))
    dtypes = {name: module.dtype for name, module in model.components().items()}
    assert dtypes == {"unet": torch.bfloat16, "vae": torch.float32, "text_encoder": torch.float16}
    x, cond = torch.randn(2, *model.latent_shape()), TensorCond({"text": torch.randn(2, 16, 16)})
    out = model.predict(model.network, x, torch.tensor(0.5), cond)
    assert out.dtype == torch.float32 and model.codec.decode(x).dtype == torch.float32


def test_auto_is_float32_on_a_cpu_and_keeps_the_autoencoder_there_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set(Dtypes().resolve().values()) == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert Dtypes().resolve() == {"network": torch.float16, "text": torch.float16, "vae": torch.float32}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert Dtypes(vae="bf16").resolve() == dict.fromkeys(["network", "text", "vae"], torch.bfloat16)


def refusal(**config):
    with pytest.raises(UserError) as caught:
        StableDiffusion(SDConfig(**config))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_missing_is_said_in_one_line(folder, copy, tmp_path, monkeypatch):
    assert "no such folder or file" in refusal(checkpoint=str(tmp_path / "nowhere"))
    assert "no such folder or file" in refusal(checkpoint="stable-diffusion")
    assert "no such file" in refusal(checkpoint=str(tmp_path / "nowhere.safetensors"))
    assert "no model_index.json" in refusal(checkpoint=str(tmp_path))
    assert "pickles" in refusal(checkpoint=str(tmp_path / "model.ckpt"))
    shutil.rmtree(copy / "vae")
    assert "could not be loaded" in refusal(checkpoint=str(copy))


def test_a_single_file_offline_asks_for_a_config_folder(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"")
    assert "Set model.config_dir" in refusal(checkpoint=str(path))
    assert "model.config_dir=" in refusal(checkpoint=str(path), config_dir=str(tmp_path))


def test_a_hub_id_offline_is_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "nobody/no-such-model" in refusal(checkpoint="nobody/no-such-model")


def test_pickled_weights_in_a_folder_are_not_read(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    assert "could not be loaded" in refusal(checkpoint=str(copy))


def test_another_family_is_named(copy):
    edit(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    assert "this is a StableDiffusionXLPipeline" in refusal(checkpoint=str(copy))


def test_models_that_are_not_text_to_image_are_refused(pipeline, tiny_sd_factory, tmp_path):
    other = tiny_sd_factory()
    other.unet.register_to_config(in_channels=9)
    other.unet.conv_in = torch.nn.Conv2d(9, 8, 3, padding=1)
    other.save_pretrained(tmp_path / "inpaint")
    assert "takes 9 channels" in refusal(checkpoint=str(tmp_path / "inpaint"))


def test_a_scheduler_that_contradicts_itself_is_refused(copy):
    scheduler = copy / "scheduler" / "scheduler_config.json"
    edit(scheduler, rescale_betas_zero_snr=True)
    assert "zero terminal SNR" in refusal(checkpoint=str(copy))
    edit(scheduler, rescale_betas_zero_snr=False, prediction_type="flow")
    assert "'flow' is not one of" in refusal(checkpoint=str(copy))


@pytest.mark.parametrize(
    ("named", "kind"),
    [("epsilon", Prediction.EPSILON), ("v_prediction", Prediction.V), ("sample", Prediction.SAMPLE)],
)
def test_the_prediction_kind_is_the_schedulers(copy, named, kind):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type=named)
    assert StableDiffusion(SDConfig(checkpoint=str(copy))).kind is kind


def test_sizes_come_from_the_network_and_the_autoencoder(model):
    assert model.image_size == (32, 32) and model.codec.factor == 4
    assert model.latent_shape() == (4, 8, 8) and model.latent_shape((64, 32)) == (4, 16, 8)
    with pytest.raises(UserError, match="multiples of 4"):
        model.latent_shape((30, 32))


def test_everything_is_frozen_and_in_evaluation_mode(model):
    for module in model.components().values():
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_lora_targets_exist_in_the_network(model):
    names = [name for name, _ in model.network.named_modules()]
    for target in model.lora_targets:
        assert sum(name.endswith("." + target) for name in names) >= 4


def test_block_checkpointing_is_an_option_and_changes_no_output(folder, model):
    x, t = torch.randn(2, *model.latent_shape()), torch.tensor(0.5)
    blocks = StableDiffusion(SDConfig(checkpoint=str(folder), checkpoint_blocks=True))
    assert blocks.network.is_gradient_checkpointing and not model.network.is_gradient_checkpointing
    gradients = []
    for each in (model, blocks):
        weight = each.network.conv_in.weight.requires_grad_()
        out = each.predict(each.network, x, t, each.text.encode(PROMPTS))
        pixels = each.codec.decode(out)
        gradients.append(torch.autograd.grad(pixels.sum(), weight)[0])
        weight.requires_grad_(False)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_predict_tells_the_network_the_table_index(model):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, timestep, encoder_hidden_states, return_dict):
            seen.append(timestep)
            return (x,)

    x, cond = torch.randn(2, *model.latent_shape()), model.text.encode(PROMPTS)
    model.predict(Network(), x, torch.tensor(0.952, dtype=torch.float64), cond)
    model.predict(Network(), x, torch.tensor([0.001, 1.0]), cond)
    assert seen[0] == 951 and seen[1].tolist() == [0.0, 999.0]


def test_decode_is_checkpointed_and_in_range(model):
    x0 = (5 * torch.randn(3, *model.latent_shape())).requires_grad_()
    pixels = model.codec.decode(x0)
    assert pixels.shape == (3, 3, 32, 32) and pixels.min() == 0 and pixels.max() == 1
    calls = []
    hook = model.codec.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels.sum().backward()
    hook.remove()
    assert calls == [1] and x0.grad is not None and x0.grad.abs().sum() > 0  # recomputed in the backward pass


def test_decoding_in_chunks_gives_the_same_images_and_gradients(folder, model):
    chunked = StableDiffusion(SDConfig(checkpoint=str(folder), decode_chunk=2))
    x0 = torch.randn(5, *model.latent_shape(), requires_grad=True)
    results = []
    for each in (model, chunked):
        pixels = each.codec.decode(x0)
        results.append((pixels, torch.autograd.grad(pixels.square().sum(), x0)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_encode_is_the_posterior_in_the_latents_own_scale(model, pipeline):
    pixels = torch.rand(2, 3, 32, 32)
    posterior = model.codec.encode(pixels)
    reference = pipeline.vae.encode(2 * pixels - 1).latent_dist
    noise = torch.randn(2, 4, 8, 8)
    scale = pipeline.vae.config.scaling_factor
    expected = scale * (reference.mean + reference.std * noise)
    torch.testing.assert_close(posterior.sample(noise), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.codec.decode(scale * reference.mean), model.codec.decode(posterior.mean))


def test_to_pipeline_shares_the_modules_and_gives_the_same_images(model, pipeline):
    made = model.to_pipeline()
    assert type(made) is type(pipeline) and made.unet is model.network and made.vae is model.codec.vae
    made.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8)
    images = [each("a star", latents=z, num_inference_steps=2, output_type="pt").images for each in (made, pipeline)]
    assert torch.equal(*images)


def test_to_pipeline_of_mixed_dtypes_runs_and_leaves_the_model_alone(folder):
    model = StableDiffusion(SDConfig(checkpoint=str(folder), dtype=Dtypes(network="bf16", text="bf16")))
    made = model.to_pipeline()
    made.set_progress_bar_config(disable=True)
    assert made("a star", num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert model.codec.vae.dtype == torch.float32 and made.vae.dtype == torch.bfloat16


def test_a_loaded_pipeline_saves_what_stock_diffusers_loads(model, tmp_path):
    from diffusers import StableDiffusionPipeline

    model.to_pipeline().save_pretrained(tmp_path / "again")
    assert same_weights(model, StableDiffusionPipeline.from_pretrained(tmp_path / "again", local_files_only=True))


def test_moving_the_model_moves_every_component(model):
    assert model.to("cpu") is model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = model.to("meta").components()
    assert {parameter.device.type for module in moved.values() for parameter in module.parameters()} == {"meta"}

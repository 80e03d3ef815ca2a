"""sampling.levers.decoder: a small decoder for the reward's gradient in training, and for nothing else."""

import pytest
import torch

import align
from align.config import load_recipe
from align.errors import UserError
from align.models._small_decoder import KNOWN, small_codec
from align.models.sd import SDConfig, StableDiffusion
from align.plan import rehearse
from align.plan.budget import budget
from align.plan.rehearsal import way_back
from align.plan.verdict import plan
from align.registry import MODELS

diffusers = pytest.importorskip("diffusers")
TINY = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
TINY |= {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_sd_factory):
    path = tmp_path_factory.mktemp("small")
    tiny_sd_factory().save_pretrained(path / "model")
    torch.manual_seed(0)
    diffusers.AutoencoderTiny(**TINY).save_pretrained(path / "tiny")
    diffusers.AutoencoderTiny(**TINY, latent_channels=16).save_pretrained(path / "of-16")
    diffusers.AutoencoderTiny(**{k: (*v, v[-1]) for k, v in TINY.items()}).save_pretrained(path / "of-8-pixels")
    diffusers.AutoencoderTiny(**TINY).save_pretrained(path / "pickled", safe_serialization=False)
    diffusers.AutoencoderTiny(**{**TINY, "num_decoder_blocks": (1, 2, 1)}).save_pretrained(path / "other-config")
    weights = path / "other-config" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes((path / "tiny" / weights.name).read_bytes())
    return path


@pytest.fixture(scope="module")
def model(tiny_sd_factory):
    return StableDiffusion(SDConfig(checkpoint="tiny", decode_chunk=1), tiny_sd_factory())


def recipe(folder, decoder, **changes):
    return {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a", "b"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0, "levers": {"decoder": decoder}},
        "train": {"batch_size": 2, "num_updates": 1},
        "output": str(folder / "run"),
        **changes,
    }


def test_it_decodes_as_the_class_does_with_the_gradient_to_the_latents(folder, model):
    small = small_codec(str(folder / "tiny"), model)
    x0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    stock = diffusers.AutoencoderTiny.from_pretrained(folder / "tiny")
    pixels = small.decode(x0)
    torch.testing.assert_close(pixels, (stock.decode(x0).sample / 2 + 0.5).clamp(0, 1))
    (found,) = torch.autograd.grad(pixels.square().sum(), x0)
    (expected,) = torch.autograd.grad((stock.decode(x0).sample / 2 + 0.5).clamp(0, 1).square().sum(), x0)
    torch.testing.assert_close(found, expected)
    assert found.abs().amax((1, 2, 3)).min() > 0
    assert small.chunk == 1 and not any(p.requires_grad for p in small.vae.parameters())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("of-16", "has 16 channels of a latent, and the model's autoencoder 4. Use one made for it"),
        ("of-8-pixels", "has 8 pixels along each side of a latent, and the model's autoencoder 4"),
        ("pickled", "could not be loaded"),
        ("other-config", "of its weights are missing or astray"),
        ("model/vae", "is a AutoencoderKL, and a small decoder is diffusers' AutoencoderTiny"),
        ("nowhere", "could not be loaded"),
        ("madebyollin/taesdxl", "is made for another family's latents. Use madebyollin/taesd, or remove it"),
    ],
)
def test_what_is_no_decoder_of_these_latents_is_refused_in_a_line(folder, model, name, said):
    source = name if name in KNOWN else str(folder / name)
    with pytest.raises(UserError, match=said) as error:
        small_codec(source, model)
    assert str(error.value).startswith(f"sampling.levers.decoder={source}: ") and "\n" not in str(error.value)


def test_families_name_those_that_are_known():
    families = {name: getattr(MODELS.get(name), "small_decoders", ()) for name in MODELS.names()}
    assert {one for own in families.values() for one in own} == KNOWN.keys()
    assert {name for name, own in families.items() if own} == {"sd", "sdxl", "sd3", "flux", "z_image", "pixart"}
    for name, own in families.items():
        assert all(KNOWN[one] == MODELS.get(name).published[0].latent[0] for one in own)


def test_training_decodes_by_it_and_pictures_and_the_report_in_full(folder, monkeypatch):
    """Each autoencoder with the number of images that it decodes, with gradient and without."""
    seen = {"AutoencoderKL": [0, 0], "AutoencoderTiny": [0, 0]}
    for name in seen:
        kind = getattr(diffusers, name)

        def decode(self, z, *args, plain=kind.decode, counts=seen[name], **kwargs):
            counts[int(not torch.is_grad_enabled())] += len(z)
            return plain(self, z, *args, **kwargs)

        monkeypatch.setattr(kind, "decode", decode)
    hooks = {"panel": {"prompts": ["c"], "num_prompts": 1, "every": 1, "rewards": {"brightness": {}}}}
    told = {"evaluate": {"prompts": ["d", "e"], "num_prompts": 2, "num_pictures": 1}, "hooks": hooks}
    run = align.train(recipe(folder, str(folder / "tiny"), **told))
    assert seen["AutoencoderTiny"] == [4, 0]  # both rows, and again in the backward pass
    assert seen["AutoencoderKL"][0] == 0 and seen["AutoencoderKL"][1] >= 4  # panels and report, before and after
    assert run.metrics[-1]["grad_norm"] > 0


def test_the_plan_counts_it_and_needs_less_for_the_way_back(folder):
    loaded = load_recipe(recipe(folder, str(folder / "tiny")))
    small, full = (rehearse(one) for one in (loaded, load_recipe(recipe(folder, None))))
    held = sum(p.nbytes for p in diffusers.AutoencoderTiny(**TINY).parameters())
    assert small.bytes["decoder"] == held and small.weights == full.weights + held
    assert small.peak < full.peak
    needed = [budget(loaded, found, gpu=False).weights for found in (small, full)]
    assert needed[0] == needed[1] + held
    said = {line.split("  ")[0]: line for line in plan(loaded).splitlines()}["decoder"]
    assert f"takes, there and back, {folder / 'tiny'} 0.00 GiB in place of 0.00" in said


def test_at_real_size_the_way_back_through_it_keeps_a_fraction():
    """One image of 512 pixels on the meta device: bytes of forward and backward, at most, beside the weights."""
    from align.models._real_size import find, real_size

    family, published = find("stable-diffusion-v1-5/stable-diffusion-v1-5")
    model = real_size(family, published)
    full, small = (way_back(codec, (4, 64, 64)) for codec in (model.codec, small_codec("madebyollin/taesd", model)))
    assert 2 * 4 * 64 * 512 * 512 < small < 0.5 * full  # of the last layers, two at least are kept


@pytest.mark.parametrize(
    ("name", "said"),
    [("nft/shapes", "is for a reward's gradient, and nft sends none through it. Remove it")],
)
def test_where_no_gradient_goes_through_a_decoder_it_is_refused(name, said):
    with pytest.raises(UserError, match=f"sampling.levers.decoder: {said}"):
        load_recipe(name, {"sampling.levers": {"decoder": "madebyollin/taesd"}})


def test_it_goes_with_any_window_where_the_levers_of_the_prefix_do_not(folder):
    sampling = {"num_steps": 2, "window": "full", "levers": {"decoder": str(folder / "tiny")}}
    assert load_recipe(recipe(folder, None, sampling=sampling)).sampling.levers.any is False
    sampling["levers"]["steps"] = 1
    with pytest.raises(UserError, match="window=last"):
        load_recipe(recipe(folder, None, sampling=sampling))

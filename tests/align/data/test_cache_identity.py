"""What is read back from a cache is what would be made anew: one thing that it depends on is changed at a time."""

import importlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pair_toys import policy_on, prepared, write_pairs

from align.data._views import ViewConfig
from align.models import _identity
from align.models._load import CheckpointConfig
from align.models.sd import SDConfig, StableDiffusion
from align.objectives._inverted import InversionConfig, trajectories
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, build

INVERSION = InversionConfig(num_steps=2, guidance_scale=2.0)


def on(pipeline, *, autocast=nullcontext, targets=("to_q",)):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline=pipeline)
    return Policy(model, Adapter(AdapterConfig(rank=2, targets=list(targets)), model.network, [], seed=0), autocast)


def snapshot(policy, folder, *, seed=0, inversion=INVERSION, **config):
    """All that a run reads back from the cache in `folder`."""
    batch = next(iter(prepared(policy, folder, batch_size=2, seed=seed, **config)))
    pairs = batch.load()
    _, states = trajectories(inversion, policy, batch, pairs)
    told = {"winner": pairs.winner.mean, "winner_logvar": pairs.winner.logvar, "loser": pairs.loser.mean}
    return told | {"text": pairs.cond.tensors["text"], "empty": pairs.uncond.tensors["text"], "states": states}


def perturbed(module):
    with torch.no_grad():
        next(p for p in module.parameters() if p.ndim > 1).mul_(1.5)


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def no_change(pipeline):
    pass


CHANGES = {
    "the autoencoder's scaling_factor": lambda p: p.vae.register_to_config(scaling_factor=0.25),
    "its shift_factor": lambda p: p.vae.register_to_config(shift_factor=0.5),
    "its weights": lambda p: perturbed(p.vae),
    "the text encoder's weights": lambda p: perturbed(p.text_encoder),
    "the tokenizer's length": lambda p: setattr(p.tokenizer, "model_max_length", 8),
    "the text encoder's mask": lambda p: setattr(p.text_encoder.config, "use_attention_mask", True),
    "the network's weights": lambda p: perturbed(p.unet),
    "the scheduler's spacing": lambda p: p.scheduler.register_to_config(timestep_spacing="trailing"),
    "its offset": lambda p: p.scheduler.register_to_config(steps_offset=3),
    "its betas": lambda p: p.scheduler.register_to_config(beta_end=0.02),
    "its prediction_type": lambda p: p.scheduler.register_to_config(prediction_type="v_prediction"),
    "where it ends": lambda p: p.scheduler.register_to_config(set_alpha_to_one=True),
    "the autoencoder's dtype": lambda p: p.vae.to(torch.bfloat16),
    "the network's dtype": lambda p: p.unet.to(torch.bfloat16),
}


@pytest.fixture(scope="module")
def kept(tiny_sd_factory, tmp_path_factory):
    """(pairs, what the base model made of them), with its cache beside them."""
    folder = write_pairs(tmp_path_factory.mktemp("kept"), 2)
    return folder, snapshot(on(tiny_sd_factory()), folder)


def anew(kept, policy, tmp_path, **config):
    """What is read back beside the base's cache, after comparing it with what is made in an empty folder."""
    found = snapshot(policy, kept[0], **config)
    fresh = snapshot(policy, kept[0], cache=str(tmp_path / "empty"), **config)
    assert all(torch.equal(found[name], fresh[name]) for name in fresh)
    return found


def differ(a, b):
    return {name for name in a if a[name].shape != b[name].shape or not torch.equal(a[name], b[name])}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_reads_back_what_it_would_make(kept, tiny_sd_factory, tmp_path, change):
    CHANGES[change](pipeline := tiny_sd_factory())
    assert differ(anew(kept, on(pipeline), tmp_path), kept[1]), "the change matters"


def test_precision_and_settings_of_the_inversion_too(kept, tiny_sd_factory, tmp_path):
    assert differ(anew(kept, on(tiny_sd_factory(), autocast=bf16), tmp_path), kept[1]) == {"states"}
    for field, value in {"num_steps": 3, "guidance_scale": 1.0, "iterations": 1}.items():
        other = INVERSION.model_copy(update={field: value})
        assert differ(anew(kept, on(tiny_sd_factory()), tmp_path / field, inversion=other), kept[1]) == {"states"}
    assert {*InversionConfig.model_fields} == {"num_steps", "guidance_scale", "iterations"}


VIEWS = {
    "image_size": {"image_size": (24, 24)},
    "buckets": {"buckets": True, "bucket_step": 8},
    "bucket_step": {"buckets": True, "bucket_step": 16},
    "max_aspect": {"buckets": True, "bucket_step": 8, "max_aspect": 1.0},
    "crop": {"crop": "random", "image_size": (24, 16)},
    "flip": {"flip": True},
}


@pytest.mark.parametrize("field", VIEWS)
def test_changed_data_settings_read_back_what_they_would_make(kept, tiny_sd_factory, tmp_path, field):
    assert VIEWS.keys() == ViewConfig.model_fields.keys()
    anew(kept, on(tiny_sd_factory()), tmp_path, views=VIEWS[field])
    anew(kept, on(tiny_sd_factory()), tmp_path / "seed", views=VIEWS[field], seed=1)


def test_what_changes_nothing_is_read_back(kept, tiny_sd_factory):
    """The same model again, with an adapter on other layers: every row comes from the cache."""
    before = set((kept[0] / "cache").rglob("*.safetensors"))
    assert not differ(snapshot(on(tiny_sd_factory(), targets=("to_k", "to_v")), kept[0]), kept[1])
    assert set((kept[0] / "cache").rglob("*.safetensors")) == before


def test_every_setting_of_a_family_is_part_of_its_identity_but_places_and_savings(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline=tiny_sd_factory())
    whole, settings = _identity.network(model, nullcontext()), model.settings
    for field in SDConfig.model_fields:
        model.settings = settings.model_copy(update={field: "another"})
        assert (_identity.network(model, nullcontext()) == whole) == (field in _identity.FREE), field


FOLDER = Path(__file__).parents[2] / "tiny_families"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "parts")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_text_is_known_by_its_settings(name):
    """Each setting that changes an embedding changes the identity: t5_tokens, text_tokens, t5, ..."""
    tiny = importlib.import_module(f"tiny_families.{name}")
    kind = MODELS.get(name)
    published = kind.published[0]
    pipeline = tiny.build(published)
    config = kind.Config(checkpoint=published.checkpoint, **tiny.SETTINGS)
    first = build(MODELS, config, pipeline)
    same = build(MODELS, config, tiny.build(published))
    assert _identity.text(first.text) == _identity.text(same.text), "of equal models it is equal"
    assert _identity.codec(first.codec) == _identity.codec(same.codec)
    own = [f for f in kind.Config.model_fields if f not in CheckpointConfig.model_fields and f.endswith("_tokens")]
    for field in own:
        other = build(MODELS, config.model_copy(update={field: (getattr(config, field) or 16) // 2}), pipeline)
        assert _identity.text(other.text) != _identity.text(first.text), field


def test_sdxls_empty_prompt_is_part_of_the_texts_identity():
    tiny, kind = importlib.import_module("tiny_families.sdxl"), MODELS.get("sdxl")
    found = set()
    for zeros in (True, False):
        pipeline = tiny.build(kind.published[0])
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
        model = build(MODELS, kind.Config(checkpoint="tiny", **tiny.SETTINGS), pipeline)
        found.add(_identity.text(model.text))
    assert len(found) == 2


def test_the_code_that_encodes_is_part_of_it(kept, tiny_sd_factory, monkeypatch):
    policy = policy_on(tiny_sd_factory())
    before = prepared(policy, kept[0]).cache
    monkeypatch.setattr(_identity, "sources", lambda *classes: "another version")
    after = prepared(policy, kept[0]).cache
    assert before.images.folder != after.images.folder and before.text.folder != after.text.folder

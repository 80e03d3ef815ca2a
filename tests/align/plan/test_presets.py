"""model.preset is spelled out, gives way to what is said beside it, and every recipe that names one plans without the
network: at its own size but for the depth, of which one block stands for all."""

import dataclasses

import pytest
import yaml

from align import recipes
from align.config import load_recipe
from align.errors import UserError
from align.models import _real_size
from align.plan import networks, rehearse
from align.presets import NAMES
from align.registry import MODELS

RECIPES = {name: path for name, path in recipes.names().items() if "preset:" in path.read_text(encoding="utf-8")}
DEPTH = {"num_layers": 1, "num_single_layers": 1, "n_layers": 1, "n_refiner_layers": 1, "dual_attention_layers": (0,)}
NO_8GB = ("flux", "qwen_image", "krea2")
"""Families whose networks do not fit 8 GB in 4.5 bits a weight."""


@pytest.mark.parametrize("preset", NAMES)
def test_every_recipe_takes_every_preset_or_says_why_not(preset):
    for name in (name for name in RECIPES if name.startswith("draft/")):
        family = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))["model"]["name"]
        if preset == "8gb" and family in NO_8GB:
            with pytest.raises(UserError, match=r"model\.preset=8gb: .* does not fit"):
                load_recipe(name, {"model.preset": preset}, on_disk=False)
            continue
        recipe = load_recipe(name, {"model.preset": preset}, on_disk=False)
        assert recipe.model.preset is None and recipe.model.checkpoint_blocks, "spelled out"
        assert recipe.model.text_on_cpu == (
            preset != "24gb" or family == "qwen_image"
        ) and recipe.train.micro_batch_size in (1, 2)
        assert all(reward.offload for reward in recipe.rewards.values() if reward.card.size[0].isdigit())


def test_what_is_said_beside_it_stays(tmp_path):
    tree = yaml.safe_load(RECIPES["draft/sdxl"].read_text(encoding="utf-8"))
    tree["train"]["micro_batch_size"], tree["model"]["decode_chunk"] = 4, 2
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    of_file = load_recipe(tmp_path / "own.yaml", on_disk=False)
    assert (of_file.train.micro_batch_size, of_file.model.decode_chunk) == (4, 2)
    asked = load_recipe(tmp_path / "own.yaml", {"model.preset": "16gb", "model.decode_chunk": 3}, on_disk=False)
    assert (asked.train.micro_batch_size, asked.model.decode_chunk) == (1, 3)


def test_a_wrong_preset_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"model\.preset: is '12gb'.*24gb"):
        load_recipe("draft/sdxl", ["model.preset=12gb"], on_disk=False)


@pytest.fixture
def shallow(monkeypatch):
    """Published networks with one block of a kind."""
    found = _real_size.find

    def find(checkpoint):
        family, published = found(checkpoint)
        import diffusers

        known = getattr(diffusers, family.network_class).__init__.__wrapped__.__code__.co_varnames
        depth = {key: value for key, value in DEPTH.items() if key in known}
        if "dual_attention_layers" not in published.network:
            depth.pop("dual_attention_layers", None)
        text = {name: (kind, settings) for name, (kind, settings) in published.text.items() if kind.startswith("CLIP")}
        return family, dataclasses.replace(published, network={**published.network, **depth}, text=text)

    monkeypatch.setattr(networks, "find", find)


@pytest.mark.parametrize("name", ["draft/flux", "nft/qwen_image", "reno/flux2_klein"])
def test_an_update_is_planned_without_the_network(name, shallow):
    changes = {"model.preset": "16gb", "sampling.image_size": [256, 256]}
    recipe = load_recipe(name, changes, on_disk=False)
    found = rehearse(recipe, gpu=True)
    assert found.rows == 1 and found.calls.backward > 0 and found.peak > 0
    network = next(size for part, size in found.bytes.items() if part in ("unet", "transformer"))
    parameters = next(size for part, size in found.parameters.items() if part in ("unet", "transformer"))
    assert network < 1.6 * parameters if recipe.model.quantize else network == 2 * parameters


def test_sizes_are_those_that_are_stated():
    """What presets go by, against the networks themselves, for the two families that are quickly built."""
    for family in (MODELS.get("pixart"), MODELS.get("sana")):
        published = family.published[0]
        network = _real_size.real_size(family, published).network
        assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(published.billions, rel=1e-3)


def test_sizes_of_text_encoders_are_those_that_are_stated():
    seen = {}
    for family in (MODELS.get(name) for name in MODELS.names()):
        for published in getattr(family, "published", ()):
            if (key := str(published.text)) not in seen:
                encoders = _real_size.text_encoders(published).values()
                seen[key] = sum(p.numel() for encoder in encoders for p in encoder.parameters()) / 1e9
            assert seen[key] == pytest.approx(published.text_billions, rel=0.05), published.checkpoint


def test_what_does_not_fit_beside_the_network_is_encoded_on_the_cpu():
    """24 GB hold the text encoder of Qwen-Image, 15.4 GiB, or its network in NF4, 10.7 GiB, and not both."""
    qwen, flux = (
        load_recipe(f"draft/{name}", {"model.preset": "24gb"}, on_disk=False) for name in ("qwen_image", "flux")
    )
    assert (qwen.model.text_on_cpu, qwen.model.offload_text) == (True, False)
    assert (flux.model.text_on_cpu, flux.model.offload_text) == (False, True)


@pytest.mark.parametrize("name", ["nft/sd35", "spo/sdxl", "diffusion_dpo/sd15_online"])
def test_what_a_recipe_draws_for_itself_is_drawn_a_few_at_a_time(name):
    assert load_recipe(name, on_disk=False).data.rollout_size > 2
    recipe = load_recipe(name, {"model.preset": "16gb"}, on_disk=False)
    assert recipe.data.rollout_size == recipe.train.micro_batch_size == 1

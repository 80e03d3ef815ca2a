"""The latent reward: the published head and adapter, written out; strict loading; nothing decoded that none reads."""

import copy
import importlib
import json
import shutil

import latent_toys
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.data.prompts import PromptBatch
from align.latent.rewards.latent import Latent, LatentConfig
from align.objectives._base import Parts
from align.policy.cast import gather
from align.policy.lora import AdapterConfig
from align.policy.noise import Noise, NoiseBatch
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, OBJECTIVES, build
from align.sampling import SamplingConfig
from rewards import Composite, RewardError
from rewards._latents import Undecoded
from rewards.brightness import Brightness, BrightnessConfig
from samplers import noise

PROMPTS = ("a cat", "two")


@pytest.fixture(scope="module")
def sd(tmp_path_factory, tiny_sd_factory):
    """(the base's folder, the reward's)."""
    base = tmp_path_factory.mktemp("base")
    tiny_sd_factory().save_pretrained(base)
    return base, latent_toys.folder(tmp_path_factory.mktemp("latent") / "it", str(base))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    parts = importlib.import_module("tiny_families.sd3")
    published = next(p for p in MODELS.get("sd3").published if "3.5-medium" in p.checkpoint)
    base = tmp_path_factory.mktemp("base3")
    parts.build(published).save_pretrained(base)
    return base


def reward(folder, **settings) -> Latent:
    return Latent(LatentConfig(model=str(folder), **settings))


def model_of(base):
    return build(MODELS, MODELS.look_up({"name": "auto", "checkpoint": str(base)}))


def test_the_published_form_written_out(sd3, tmp_path):
    """Two blocks of a dual-attention SD3.5 with peft's adapter, both texts and images read, at t = 0.4."""
    where = latent_toys.folder(tmp_path / "it", str(sd3), (1,), (1,), lora=True)
    told = json.loads((where / "config.json").read_text())
    told["model"] |= {"visual_head_idx": [1], "text_head_idx": [1]}
    (where / "config.json").write_text(json.dumps(told))
    model = model_of(sd3)
    transformer = copy.deepcopy(model.network)
    transformer.transformer_blocks = transformer.transformer_blocks[:1]
    latent_toys.adapted(transformer, where / "checkpoint" / "backbone_lora")  # in place
    base = {"name": "sd3", "checkpoint": str(sd3), "t5_tokens": 16}
    own = reward(where, base=MODELS.look_up(base))
    x0 = noise(0, "x", [0, 1], (4, 8, 8))
    with torch.no_grad():
        eps = noise(0, "latent", [0], (4, 8, 8))
        x_t = 0.6 * x0 + 0.4 * eps
        cond = own.bundle.text.encode(PROMPTS).tensors
        hidden = transformer.pos_embed(x_t)
        e = transformer.time_text_embed(torch.full((2,), 400.0), cond["pooled"])
        words = transformer.context_embedder(cond["text"])
        words, hidden = transformer.transformer_blocks[0](hidden_states=hidden, encoder_hidden_states=words, temb=e)
        state = torch.load(where / "checkpoint" / "rm_head.pt", weights_only=True)
        wanted = latent_toys.score(state, [hidden], [words], e)
        torch.testing.assert_close(own.of_latents(x0, PROMPTS), wanted, rtol=0, atol=1e-4)
    assert float((wanted[0] - wanted[1]).abs()) > 1e-2, "a reward that is constant would show nothing"
    adapter = where / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    tensors = load_file(adapter)
    save_file(dict(list(tensors.items())[1:]), adapter)
    with pytest.raises(RewardError, match=r"adapter of another network.*lacks"):
        reward(where, base=MODELS.look_up(base))


def test_a_unet_read_in_its_middle(sd):
    base, where = sd
    model, own = model_of(base), reward(where, num_noises=2)
    x0, got = noise(0, "x", [0, 1], (4, 8, 8)), {}
    model.network.mid_block.register_forward_hook(lambda m, a, out: got.update(h=out))
    model.network.time_embedding.register_forward_hook(lambda m, a, out: got.update(e=out))
    wanted = []
    with torch.no_grad():
        for k in range(2):
            alpha, sigma = model.schedule(torch.tensor(0.4, dtype=torch.float64))
            x_t = (alpha * x0 + sigma * noise(0, "latent", [k], (4, 8, 8))).float()
            model.predict(model.network, x_t, torch.tensor(0.4).double(), model.text.encode(PROMPTS))
            tokens = got["h"].flatten(2).mT
            state = load_file(where / "checkpoint" / "rm_head.safetensors")
            wanted.append(latent_toys.score(state, [tokens], [], got["e"].expand(2, -1)))
        torch.testing.assert_close(own.of_latents(x0, PROMPTS), torch.stack(wanted).mean(0), rtol=0, atol=1e-4)
        pixels = model.codec.decode(x0)
        encoded = own.of_latents(model.codec.encode(pixels).mean, PROMPTS)
        torch.testing.assert_close(own(pixels, PROMPTS), encoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("what", ["less", "more", "shape", "no file", "no config", "not ours"])
def test_files_are_read_strictly(sd, tmp_path, what):
    where = shutil.copytree(sd[1], tmp_path / "it")
    file = where / "checkpoint" / "rm_head.safetensors"
    state = load_file(file)
    if what == "less":
        state.pop("head.bias")
    elif what == "more":
        state["eta3"] = torch.zeros(1)
    elif what == "shape":
        state["head.weight"] = torch.zeros(1, 8)
    save_file(state, file)
    if what == "no file":
        file.unlink()
    elif what == "no config":
        (where / "config.json").unlink()
    elif what == "not ours":
        (where / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(RewardError) as caught:
        reward(where)
    assert "\n" not in str(caught.value)
    part = {"less": "head.bias", "more": "eta3", "shape": "head.weight", "no file": "rm_head.pt"}
    assert part.get(what, "config.json") in str(caught.value)


METHODS = {
    "draft": {},
    "alignprop": {},
    "refl": {"margin": None},
    "drtune": {},
    "leapalign": {},
    "srpo": {"words": [["two", "cat"]]},
    "reno": {"prior": "none"},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("both", [False, True], ids=["latent", "with a reward of pixels"])
def test_only_what_reads_pixels_has_them_decoded(sd, name, both):
    """The objectives that follow a reward's gradient: with latent rewards alone there is not one call of the decoder;
    beside a reward that reads pixels there is one for both. Every way what is trained has a gradient."""
    base, where = sd
    model = model_of(base)
    calls, decode = [], model.codec.decode
    model.codec.decode = lambda x0: calls.append(len(x0)) or decode(x0)  # type: ignore[method-assign]
    rewards = {"latent": reward(where)} | ({"brightness": Brightness(BrightnessConfig())} if both else {})
    sampling = SamplingConfig(num_steps=2, guidance_scale=1.0, subset_k=1)
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    policy = Policy(model, adapter)
    config = OBJECTIVES.look_up({"name": name, **METHODS[name]})
    objective = build(OBJECTIVES, config, Parts(model, sampling, Composite(rewards), 0))
    if getattr(config, "trains", "adapter") == "noise":
        trained = Noise(noise(0, "x_T", [0, 1], (4, 8, 8)))
        loss = objective(policy, NoiseBatch(trained, PROMPTS, (0, 1), 0, (0, 2)))
        parameters = trained.parameters()
    else:
        gather(policy, objective, None)
        loss = objective(policy, PromptBatch(PROMPTS, (0, 1), 0))
        parameters = list(adapter.parameters())
    loss.per_sample.sum().backward()
    sides = 2 if name == "srpo" else 1
    assert len(calls) == (sides if both else 0)
    assert any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def test_gradients_meet_at_the_latents(sd):
    """Beside a reward of pixels: the total's gradient is the sum of both, the second through the decoder."""
    base, where = sd
    model, latent, bright = model_of(base), reward(where), Brightness(BrightnessConfig(weight=3.0))
    x0 = noise(0, "x", [0, 1], (4, 8, 8)).requires_grad_()
    scored = Composite({"latent": latent, "bright": bright}).score(Undecoded(x0, model.codec), PROMPTS)
    (found,) = torch.autograd.grad(scored.total.sum(), x0)
    plain = latent.of_latents(x0, PROMPTS) + 3 * bright(model.codec.decode(x0), PROMPTS)
    torch.testing.assert_close(scored.total, plain.detach())
    (wanted,) = torch.autograd.grad(plain.sum(), x0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert {"latent_grad/latent", "latent_grad/bright", "cosine/latent/bright"} <= scored.metrics.keys()


def test_latents_of_another_autoencoder_are_not_read(sd):
    base, where = sd
    model, own = model_of(base), reward(where)
    assert own.knows(model.codec)
    with torch.no_grad():
        next(model.codec.vae.parameters()).mul_(1.5)
    other = model_of(base)
    with torch.no_grad():
        next(other.codec.vae.parameters()).mul_(1.5)
        assert not own.knows(other.codec)
        x0 = noise(0, "x", [0, 1], (4, 8, 8))
        terms = Composite({"it": own})(Undecoded(x0, other.codec), PROMPTS)
        torch.testing.assert_close(terms["it"], own(other.codec.decode(x0), PROMPTS))

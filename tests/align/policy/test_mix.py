"""Several adapters on one network: the weights that result, the base that stays, and what is refused."""

import json

import pytest
import torch
from align_toys import randomise
from safetensors.torch import load_file, save_file

from align.errors import UserError
from align.policy.adapter_file import read
from align.policy.lora import FILE_NAME, METADATA_KEY, AdapterConfig
from align.policy.mix import Mixer, locate
from align.policy.trainable import Adapter

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
A = AdapterConfig(rank=4, alpha=10)
B = AdapterConfig(rank=2, alpha=3, rslora=True, targets=["to_q", "ff.net.2"])
DORA = AdapterConfig(rank=2, alpha=6, dora=True)


def exported(factory, config, folder, seed=0):
    """An adapter of random values in `folder`; -> the network that it is on, with it."""
    network = factory().unet
    adapter = Adapter(config, network, TARGETS, seed=seed)
    randomise(adapter, scale=0.1)
    adapter.export(folder)
    return network, adapter


@torch.no_grad()
def output(network):
    generator = torch.Generator().manual_seed(3)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return network(x, torch.tensor([400, 10]), encoder_hidden_states=text).sample


def loaded(factory, folder):
    """The output of a fresh network with the adapter of `folder` at weight 1."""
    network = factory().unet
    mixer = Mixer(network, "unet")
    mixer.add(str(folder))
    mixer.set({str(folder): 1.0})
    return output(network)


def added(network):
    """{layer: s B A} of an exported adapter, dense."""
    return {
        name: layer.get_delta_weight("default")
        for name, layer in network.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.mark.parametrize("config", [A, B, DORA], ids=["alpha", "rslora", "dora"])
@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
def test_one_adapter_is_what_the_run_had(tiny_sd_factory, tmp_path, config, strength):
    network, adapter = exported(tiny_sd_factory, config, tmp_path)
    with adapter.scaled(strength):
        wanted = output(network)
    mixed = tiny_sd_factory().unet
    base = output(mixed)
    mixer = Mixer(mixed, "unet")
    mixer.add(str(tmp_path))
    mixer.set({str(tmp_path): strength})
    torch.testing.assert_close(output(mixed), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - base).abs().max() > 1e-2


def test_two_adapters_add_up_in_the_weights(tiny_sd_factory, tmp_path):
    """Against W0 + 0.7 s B A + 0.2 s B A, computed densely."""
    deltas = {}
    for name, config in (("a", A), ("b", B)):
        network, _ = exported(tiny_sd_factory, config, tmp_path / name, seed=ord(name))
        deltas[name] = added(network)
    assert deltas["a"].keys() != deltas["b"].keys()
    dense = tiny_sd_factory().unet
    with torch.no_grad():
        for name, weight in (("a", 0.7), ("b", 0.2)):
            for layer, delta in deltas[name].items():
                dense.get_submodule(layer).weight += weight * delta
    mixed = tiny_sd_factory().unet
    mixer = Mixer(mixed, "unet")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    mixer.add(a)
    mixer.add(b)
    mixer.set({a: 0.7, b: 0.2})
    torch.testing.assert_close(output(mixed), output(dense), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in mixed.parameters())


def test_without_weight_it_is_the_base_bit_for_bit(tiny_sd_factory, tmp_path):
    for name, config in (("a", A), ("dora", DORA)):
        exported(tiny_sd_factory, config, tmp_path / name)
    network = tiny_sd_factory().unet
    base = output(network)
    mixer = Mixer(network, "unet")
    a, dora = str(tmp_path / "a"), str(tmp_path / "dora")
    mixer.add(a)
    mixer.add(dora)
    assert torch.equal(output(network), base), "adding switches nothing on"
    mixer.set({a: 1.0, dora: 1.0})
    both = output(network)
    mixer.set({a: 1.0, dora: 0.0})
    alone = output(network)
    assert not torch.equal(both, alone) and not torch.equal(alone, base)
    mixer.set({a: 0.0})
    assert torch.equal(output(network), base)
    mixer.set({a: 1.0})
    assert torch.equal(output(network), alone), "and back"


def test_a_layer_may_have_a_rank_of_its_own(tiny_sd_factory, tmp_path):
    network, _ = exported(tiny_sd_factory, A, tmp_path)
    tensors = load_file(tmp_path / FILE_NAME)
    first = next(name for name in tensors if name.endswith("lora_A.weight"))
    other = first.replace("lora_A", "lora_B")
    # One more rank of zeros: the same weights, another shape.
    tensors[first] = torch.cat([tensors[first], torch.zeros(1, tensors[first].shape[1])])
    tensors[other] = torch.cat([tensors[other], torch.zeros(len(tensors[other]), 1)], 1)
    save_file(tensors, tmp_path / FILE_NAME)
    torch.testing.assert_close(loaded(tiny_sd_factory, tmp_path), output(network), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("said", ["in the layers", "in the metadata", "by pattern", "rslora"])
def test_a_scale_is_read_wherever_a_file_says_it(tiny_sd_factory, tmp_path, said):
    """The toolkit's own files have s = 1; here B is smaller by the scale that the file then gives."""
    network, _ = exported(tiny_sd_factory, A, tmp_path)
    tensors, alpha, rank = load_file(tmp_path / FILE_NAME), 12.0, 4
    layers = [name.removesuffix(".lora_B.weight") for name in tensors if name.endswith(".lora_B.weight")]
    plain = [layer.removeprefix("unet.") for layer in layers]
    metadata = {
        "in the layers": {},
        "in the metadata": {"r": rank, "lora_alpha": alpha},
        "by pattern": {"r": rank, "lora_alpha": 99.0, "alpha_pattern": dict.fromkeys(plain, alpha)},
        "rslora": {"r": rank, "lora_alpha": alpha, "use_rslora": True},
    }[said]
    scale = alpha / (2 if said == "rslora" else rank)
    tensors |= {f"{layer}.lora_B.weight": tensors[f"{layer}.lora_B.weight"] / scale for layer in layers}
    if said == "in the layers":
        tensors |= {f"{layer}.alpha": torch.tensor(alpha) for layer in layers}
    written = {METADATA_KEY: json.dumps({f"unet.{key}": value for key, value in metadata.items()})}
    save_file(tensors, tmp_path / FILE_NAME, metadata=written)
    expected = output(network)
    torch.testing.assert_close(loaded(tiny_sd_factory, tmp_path), expected, rtol=1e-5, atol=1e-5)
    again = tiny_sd_factory().unet  # for training on, and by what export and merging read
    Adapter(AdapterConfig(rank=4, init=str(tmp_path)), again, TARGETS, seed=1)
    torch.testing.assert_close(output(again), expected, rtol=1e-5, atol=1e-5)
    for name, (a, b) in read(tmp_path / FILE_NAME).layers.items():
        torch.testing.assert_close(b @ a, added(network)[name], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_said_in_a_line(tiny_sd_factory, tmp_path):
    exported(tiny_sd_factory, A, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / FILE_NAME)
    wide = {name: torch.zeros(len(t), t.shape[1] + 1) if "lora_A" in name else t for name, t in tensors.items()}
    half = {name: t for name, t in tensors.items() if "lora_A" in name}
    cases = {
        "wide": (wide, r"does not fit this model \(size mismatch for "),
        "half": (half, "is damaged"),
        "other": ({name.replace("unet.", "transformer."): t for name, t in tensors.items()}, "network is a unet"),
        "layers": ({name.replace("to_q", "to_nowhere"): t for name, t in tensors.items()}, "does not fit|has no layer"),
    }
    for name, (file, said) in cases.items():
        (tmp_path / name).mkdir()
        save_file(file, tmp_path / name / FILE_NAME)
        with pytest.raises(UserError, match=said) as caught:
            Mixer(tiny_sd_factory().unet, "unet").add(str(tmp_path / name))
        assert "adapter.init" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_user_may_call_an_adapter(tiny_sd_factory, tmp_path):
    exported(tiny_sd_factory, A, tmp_path / "runs" / "mine" / "adapter")
    run = tmp_path / "runs" / "mine"
    (run / "recipe.yaml").write_text("{}")
    file = run / "adapter" / FILE_NAME
    for said in (run, run / "adapter", file):
        assert locate(str(said)) == (str(file), run / "recipe.yaml", "mine")
    (tmp_path / "other.safetensors").write_bytes(file.read_bytes())
    assert locate(str(tmp_path / "other.safetensors"))[1:] == (None, "other")
    for hub_id in ("somebody/adapter", "somebody/adapter-v1.5"):
        assert locate(hub_id) == (hub_id, None, hub_id)
    (tmp_path / "empty").mkdir()
    cases = ((tmp_path / "empty", "holds pytorch_lora_weights"), ("nowhere", "no adapter"), ("./a/b", "no adapter"))
    for wrong, said in cases:
        with pytest.raises(UserError, match=said):
            locate(str(wrong))

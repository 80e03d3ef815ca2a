"""Adapters that others have written: every spelling and scale draws what diffusers draws, and what is not understood is
named, by each of the three ways in (evaluate's mixer, adapter.init, the reader behind export and publish)."""

import json

import pytest
import torch
from align_toys import randomise
from safetensors.torch import load_file, save_file

from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.policy.adapter_file import FILE_NAME, METADATA_KEY, find, is_hub_id, read
from align.policy.lora import AdapterConfig
from align.policy.mix import Mixer, locate
from align.policy.trainable import Adapter

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@torch.no_grad()
def output(network):
    generator = torch.Generator().manual_seed(3)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return network(x, torch.tensor([400, 10]), encoder_hidden_states=text).sample


@pytest.fixture
def tensors(tiny_sd_factory, tmp_path):
    """{name: tensor} of an adapter of rank 4 at alpha = rank in diffusers' names."""
    adapter = Adapter(AdapterConfig(rank=4), tiny_sd_factory().unet, TARGETS, seed=0)
    randomise(adapter, scale=0.1)
    adapter.export(tmp_path / "plain")
    return load_file(tmp_path / "plain" / FILE_NAME)


def saved(folder, tensors, **said):
    folder.mkdir(exist_ok=True)
    metadata = {
        "format": "pt",
        **({METADATA_KEY: json.dumps({f"unet.{k}": v for k, v in said.items()})} if said else {}),
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / FILE_NAME, metadata)
    return folder


def mixed(factory, folder):
    network = factory().unet
    mixer = Mixer(network, "unet")
    mixer.add(str(folder))
    mixer.set({str(folder): 1.0})
    return output(network)


def stock(factory, folder):
    pipeline = factory()
    pipeline.load_lora_weights(str(folder), weight_name=FILE_NAME, adapter_name="x")
    return output(pipeline.unet)


PATTERNS = [
    {"attn2.to_q": 32},
    {"to_q": 32},
    {r".*down_blocks.*attn1\.to_[kv]": 9},
    {"to_q": 1, "attn2.to_q": 32},  # the first that matches counts
    {"q": 32},  # no whole part of a name: matches nothing
    {},
]


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_patterns_match_as_pefts(tiny_sd_factory, tensors, tmp_path, patterns, rslora):
    said = {"r": 4, "lora_alpha": 6, "alpha_pattern": patterns, "use_rslora": rslora, "target_modules": TARGETS}
    folder = saved(tmp_path / "file", tensors, **said)
    wanted = stock(tiny_sd_factory, folder)
    torch.testing.assert_close(mixed(tiny_sd_factory, folder), wanted, rtol=1e-5, atol=1e-5)
    network = tiny_sd_factory().unet
    Adapter(AdapterConfig(rank=4, init=str(folder), alpha=3), network, TARGETS, seed=1)
    torch.testing.assert_close(output(network), wanted, rtol=1e-5, atol=1e-5)


def test_a_rank_pattern_with_one_alpha_for_all(tiny_sd_factory, tensors, tmp_path):
    name = next(name for name in tensors if "attn2.to_q.lora_A" in name)
    layer = name.removesuffix(".lora_A.weight")
    tensors[name] = torch.cat([tensors[name], torch.randn(2, tensors[name].shape[1])])
    up = tensors[f"{layer}.lora_B.weight"]
    tensors[f"{layer}.lora_B.weight"] = torch.cat([up, torch.randn(len(up), 2)], 1)
    said = {"r": 4, "lora_alpha": 4, "rank_pattern": {layer.removeprefix("unet."): 6}, "target_modules": TARGETS}
    folder = saved(tmp_path / "file", tensors, **said)
    torch.testing.assert_close(mixed(tiny_sd_factory, folder), stock(tiny_sd_factory, folder), rtol=1e-5, atol=1e-5)


def renamed(name, style):
    if style == "lora.down":
        return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
    if style == "processor":
        module, _, end = name.rpartition(".lora_")
        part, short = module.rpartition(".attn")[2].partition(".")[::2]
        block = module.rpartition(".attn")[0]
        side = "down" if end.startswith("A") else "up"
        return f"{block}.attn{part}.processor.{short.removesuffix('.0')}_lora.{side}.weight"
    if style == "in memory":
        return name.replace(".weight", ".default.weight")
    return name


@pytest.mark.parametrize("style", ["lora.down", "processor", "in memory"])
def test_older_spellings_are_the_same_adapter(tiny_sd_factory, tensors, tmp_path, style):
    wanted = mixed(tiny_sd_factory, tmp_path / "plain")
    folder = saved(tmp_path / "file", {renamed(name, style): value for name, value in tensors.items()})
    assert load_file(folder / FILE_NAME).keys() != tensors.keys()
    torch.testing.assert_close(mixed(tiny_sd_factory, folder), wanted, rtol=0, atol=0)
    if style != "in memory":
        torch.testing.assert_close(stock(tiny_sd_factory, folder), wanted, rtol=1e-5, atol=1e-5)


def test_pefts_own_folder_is_read_with_its_config(tiny_sd_factory, tensors, tmp_path):
    from align.share.export import export

    folder = export(tmp_path / "plain", "peft", tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    for mine, theirs in zip(
        read(file, "unet").layers.items(), read(tmp_path / "plain" / FILE_NAME).layers.items(), strict=False
    ):
        assert mine[0] == theirs[0] and torch.equal(mine[1][1], theirs[1][1])
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"without the adapter_config\.json that says its alpha"):
        read(file, "unet")


FIRST = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WRONG = {
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": r"changes the text_encoder \(text_",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": "also changes the text_encoder_2",
    "transformer.x.lora_A.weight": "adapters of transformer and unet",
    "unet.down_blocks.0.lokr_w1": r"1 of its \d+ tensors .* first unet.down_blocks.0.lokr_w1 \(a LoKr\)",
    "unet.x.hada_w1_a": "a LoHa",
    "lora_unet_x.lora_down.weight": "kohya's names",
    f"{FIRST}.lora_B.bias": f"first {FIRST}.lora_B.bias",
    f"{FIRST}.diff_b": "first unet",
    f"{FIRST}.lora.up.weight": "is there in two spellings",
    "unet.new.lora_A.weight": r"has new.lora_A.weight but no new.lora_B.weight",
    "unet.new.alpha": r"has new.alpha but no new.lora_A.weight",
    "unet.new.lora_magnitude_vector": "has new.lora_magnitude_vector but no new.lora_A.weight",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_understood_is_named_by_every_reader(tiny_sd_factory, tensors, tmp_path, name):
    folder = saved(tmp_path / "file", {**tensors, name: torch.zeros(4, 4)})
    ways = [
        lambda: read(folder / FILE_NAME),
        lambda: mixed(tiny_sd_factory, folder),
        lambda: Adapter(AdapterConfig(rank=4, init=str(folder)), tiny_sd_factory().unet, TARGETS, seed=0),
    ]
    for way in ways:
        with pytest.raises(UserError, match=WRONG[name]) as caught:
            way()
        assert str(folder / FILE_NAME) in str(caught.value) and "\n" not in str(caught.value)
    assert next(AdapterConfig(init=str(folder)).conflicts({}))[0] == ".init", "before anything is loaded"


FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html>", "a web page and no weights"),
    "pickle": (b"\x80\x02}q\x00.", "a torch pickle"),
    "zip": (b"PK\x03\x04" + bytes(100), "a torch pickle"),
    "empty": (b"", "is empty or cut short"),
    "bytes": (bytes(range(200)), "not a safetensors file that is whole"),
    "half": (None, "not a safetensors file that is whole"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_weights_say_what_they_are(tiny_sd_factory, tensors, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    data, said = FILES[name]
    whole = (tmp_path / "plain" / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(whole[: len(whole) // 2] if data is None else data)
    for way in (lambda: read(folder / FILE_NAME), lambda: mixed(tiny_sd_factory, folder)):
        with pytest.raises(UserError, match=said) as caught:
            way()
        assert "\n" not in str(caught.value)
    assert said in next(AdapterConfig(init=str(folder)).conflicts({}))[1]


def test_values_that_are_no_numbers_and_broken_settings_are_refused(tensors, tmp_path):
    folder = saved(tmp_path / "a", tensors, r=4, lora_alpha=4, alpha_pattern={"to_(q": 3})
    with pytest.raises(UserError, match="its alpha_pattern cannot be used"):
        read(folder / FILE_NAME)
    tensors[f"{FIRST}.lora_A.weight"] = tensors[f"{FIRST}.lora_A.weight"] * torch.nan
    with pytest.raises(UserError, match="holds values that are no numbers"):
        read(saved(tmp_path / "b", tensors) / FILE_NAME)
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors", {METADATA_KEY: "[1]"})
    with pytest.raises(UserError, match="is no JSON object"):
        read(tmp_path / "c.safetensors")


def test_convolutions_keep_their_kernels(tiny_sd_factory, tmp_path):
    network = tiny_sd_factory().unet
    adapter = Adapter(AdapterConfig(rank=2, targets=["conv1", "to_q"]), network, TARGETS, seed=0)
    randomise(adapter, scale=0.1)
    adapter.export(tmp_path)
    torch.testing.assert_close(mixed(tiny_sd_factory, tmp_path), output(network), rtol=1e-5, atol=1e-5)


def test_a_name_that_is_not_there_is_no_hub_id_where_its_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "draft").mkdir(parents=True)
    with pytest.raises(UserError, match=r"runs/draff: there is no such folder in runs\. Did you mean runs/draft\?"):
        locate("runs/draff")
    with pytest.raises(UserError, match="there is no file runs/draff in the folder runs"):
        find("runs/draff")
    assert locate("me/style-v1.5").adapter == "me/style-v1.5"
    assert [is_hub_id(text) for text in ("a/b", "a b/c", "./b", "a/b.safetensors", "a/b/c")] == [True] + [False] * 4


def test_a_stock_family_reads_what_the_pipeline_reads(tiny_sd_factory, tensors, tmp_path):
    """The network's name decides: an adapter of a transformer is refused on a U-Net by both names."""
    other = {name.replace("unet.", "transformer."): value for name, value in tensors.items()}
    with pytest.raises(UserError, match="an adapter of a transformer, and this model's network is a unet"):
        mixed(tiny_sd_factory, saved(tmp_path / "file", other))
    assert StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory()).network_name == "unet"

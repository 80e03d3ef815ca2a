"""SDXL's UNets whose blocks have another number of layers: sgm's names count them by the checkpoint's own config."""

import pytest
from safetensors.torch import load_file
from test_export import run
from tiny_families import sdxl

from align.errors import UserError
from align.models.sdxl import StableDiffusionXL
from align.policy import adapter_file
from align.share.export import export

TARGETS = ["to_q", "to_v", "conv1", "proj_in", "downsamplers.0.conv", "upsamplers.0.conv"]


def built(number):
    """The tiny SDXL with so many layers a block, its second level without attention on the way up."""
    from diffusers import UNet2DConditionModel

    pipeline = sdxl.build(StableDiffusionXL.published[0])
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "layers_per_block": number})
    return pipeline


@pytest.mark.parametrize("where", ["checkpoint", "network"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_diffusers_gives_the_same_layers_back(tmp_path, number, where):
    pipeline = built(number)
    output = run(tmp_path, pipeline, "sdxl", targets=TARGETS)
    if where == "network":
        recipe = output / "recipe.yaml"
        (tmp_path / "base" / "unet").rename(tmp_path / "apart")
        recipe.write_text(recipe.read_text().replace("base}", f"base, network: {tmp_path / 'apart'}}}"))
    made = adapter_file.read(adapter_file.locate(output)[0]).layers
    path = export(output, "kohya", tmp_path / "out")
    assert load_file(path).keys() == load_file(export(output, "comfyui", tmp_path / "comfy")).keys()
    fresh = built(number)
    fresh.load_lora_weights(str(path), adapter_name="back")
    found = {n: p.detach() for n, p in fresh.unet.named_parameters() if "lora_" in n}
    for module, (a, b) in made.items():
        assert found.pop(f"{module}.lora_A.back.weight").equal(a) and found.pop(f"{module}.lora_B.back.weight").equal(b)
    assert not found


def test_a_network_whose_config_is_not_known_is_refused_in_a_line(tmp_path):
    output = run(tmp_path, built(1), "sdxl")
    config = tmp_path / "base" / "unet" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"layers_per_block": 1', '"layers_per_block": [1, 2]'))
    with pytest.raises(UserError, match=r"blocks of \[1, 2\] layers, sgm of one number\. Choose peft or merged"):
        export(output, "kohya", tmp_path / "out")
    config.unlink()
    with pytest.raises(UserError, match=r"config.json: cannot be read .* Choose peft or merged"):
        export(output, "kohya", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_published_checkpoint_needs_no_network():
    family, config = StableDiffusionXL, StableDiffusionXL.Config
    for checkpoint in (family.published[0].checkpoint, "gone/away.safetensors"):
        assert family.layout("kohya", config(checkpoint=checkpoint)).keywords == {"layers_per_block": 2}
    with pytest.raises(UserError, match=r"nobody/nothing: the config of its network is neither cached nor to be had"):
        family.layout("kohya", config(checkpoint="nobody/nothing"))

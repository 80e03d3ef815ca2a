"""Exported adapters: what other programs load is what was trained."""

import importlib
import json

import pytest
import torch
from align_toys import randomise
from safetensors.torch import load_file

from align.errors import UserError
from align.models import _layouts
from align.policy import adapter_file
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.registry import MODELS
from align.share.export import export
from samplers import Rng

PROMPTS = ["a red circle", "two stars"]
RECIPE = "model: {{name: {name}, checkpoint: {checkpoint}}}\nobjective: draft\n"
RECIPE += "data: {{name: prompts, prompts: [a]}}\nrewards: {{jpeg: {{}}}}\n"


def run(folder, pipeline, name="sd", *, base="base", **adapter):
    """A run's folder: the base model saved beside it, a recipe and an adapter that does something."""
    pipeline.save_pretrained(folder / base)
    family = MODELS.get(name)
    model = family(family.Config(checkpoint="tiny"), pipeline)
    component = next(k for k, module in model.components().items() if module is model.network)
    made = Adapter(
        AdapterConfig(**{"rank": 4, **adapter}), model.network, list(model.lora_targets), component=component, seed=0
    )
    randomise(made, scale=0.1)
    output = folder / "my-run"
    made.export(output / "adapter")
    (output / "recipe.yaml").write_text(RECIPE.format(name=name, checkpoint=folder / base))
    return output


def images(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    latents = Rng(0, range(2)).normal("x_T", torch.empty(2, 4, 8, 8))
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt", **options}
    return torch.as_tensor(pipeline(PROMPTS, latents=latents, **settings).images)


def stock(folder, output):
    """(before, after) of a stock pipeline and the adapter as it was trained."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder / "base")
    before = images(pipeline)
    pipeline.load_lora_weights(str(output / "adapter"), adapter_name="align")
    return pipeline, before, images(pipeline)


@pytest.mark.parametrize("kind", [{}, {"alpha": 16}, {"alpha": 3, "rslora": True}], ids=str)
@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_diffusers_own_converter_reads_what_was_exported(tiny_sd_factory, tmp_path, format, kind):
    output = run(tmp_path, tiny_sd_factory(), **kind)
    path = export(output, format, tmp_path / "out")
    pipeline, before, trained = stock(tmp_path, output)
    assert (trained - before).abs().max() > 0.02  # the adapter does something
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(str(path))
    torch.testing.assert_close(images(pipeline), trained, rtol=0, atol=1e-5)


def test_a_strength_is_in_the_file(tiny_sd_factory, tmp_path):
    output = run(tmp_path, tiny_sd_factory())
    path = export(output, "kohya", tmp_path / "out", strength=0.5)
    pipeline, _, full = stock(tmp_path, output)
    pipeline.set_adapters("align", 0.5)
    half = images(pipeline)
    assert (half - full).abs().max() > 0.01
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(str(path))
    torch.testing.assert_close(images(pipeline), half, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "strength"), [({"alpha": 16}, 1.0), ({"alpha": 16}, 0.6), ({"dora": True, "alpha": 9}, 1.0)]
)
def test_merged_weights_draw_what_base_and_adapter_draw(tiny_sd_factory, tmp_path, kind, strength):
    from diffusers import StableDiffusionPipeline

    output = run(tmp_path, tiny_sd_factory(), **kind)
    folder = export(output, "merged", tmp_path / "merged", strength=strength)
    merged = StableDiffusionPipeline.from_pretrained(folder)
    pipeline, before, _ = stock(tmp_path, output)
    pipeline.set_adapters("align", strength)
    expected = images(pipeline)
    assert (expected - before).abs().max() > 0.02
    torch.testing.assert_close(images(merged), expected, rtol=0, atol=1e-4)
    names = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert names.keys() == load_file(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").keys()


@pytest.mark.parametrize("kind", [{"alpha": 16}, {"dora": True}], ids=str)
def test_peft_loads_its_folder(tiny_sd_factory, tmp_path, kind):
    from peft import PeftModel

    output = run(tmp_path, tiny_sd_factory(), **kind)
    folder = export(output, "peft", tmp_path / "out")
    pipeline, _, trained = stock(tmp_path, output)
    pipeline.unload_lora_weights()
    wrapped = PeftModel.from_pretrained(pipeline.unet, folder)
    torch.testing.assert_close(images(pipeline), trained, rtol=0, atol=1e-5)
    wrapped.unload()
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text(), "it is read on other machines"


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ("/home/me/models/sdxl", "sdxl"),
        ("owner/name", "owner/name"),
        ("owner/name:net.safetensors", "owner/name:net.safetensors"),
        ("embedded:shapes-sd", "embedded:shapes-sd"),
    ],
)
def test_peft_is_told_its_base_as_other_machines_know_it(tiny_sd_factory, tmp_path, checkpoint, named):
    output = run(tmp_path, tiny_sd_factory())
    (output / "recipe.yaml").write_text(RECIPE.format(name="sd", checkpoint=checkpoint))
    said = json.loads((export(output, "peft", tmp_path / "out") / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == named


def tiny(name, published):
    pipeline = importlib.import_module(f"tiny_families.{name}").build(published)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_sdxl_goes_by_the_names_of_sgm_and_back(tmp_path):
    """A UNet of SDXL's three levels with every kind of layer adapted; the way back is diffusers' own."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 8), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56,
    )  # fmt: skip
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
    targets += ["conv_shortcut", "time_emb_proj", "linear_1", "linear_2", "conv_in", "conv_out", "downsamplers.0.conv"]
    made = Adapter(AdapterConfig(rank=2), unet, [*targets, "upsamplers.0.conv"], seed=0)
    randomise(made)
    made.export(tmp_path)
    file = adapter_file.read(tmp_path / "pytorch_lora_weights.safetensors")
    names = _layouts.sgm_unet(file.layers)
    for key in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_middle_block_1_proj_in.lora_up.weight",
        "lora_unet_output_blocks_5_2_conv.alpha",
        "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj.alpha",
    ):
        assert key in names
    back, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(names), unet_config=unet.config)
    fresh = UNet2DConditionModel.from_config(unet.config)
    fresh.load_lora_adapter(back, network_alphas=alphas, prefix="unet")
    found = {n: p.detach() for n, p in fresh.named_parameters() if "lora_" in n}
    for module, (a, b) in file.layers.items():
        assert torch.equal(found.pop(f"{module}.lora_A.default_0.weight"), a)
        assert torch.equal(found.pop(f"{module}.lora_B.default_0.weight"), b)
    assert not found


def flux_layers(rows, rank=2):
    """Layers as in FLUX.1, of the widths that diffusers' converter assumes, q and k of the single block only."""
    generator = torch.Generator().manual_seed(0)
    inner = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj")
    inner += ("attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff_context.net.2", "norm1.linear")
    names = [f"transformer_blocks.{i}.{n}" for i in (0, 11) for n in inner]
    names += [f"single_transformer_blocks.{i}.{n}" for i in (0, 37) for n in ("attn.to_q", "attn.to_k", "proj_out")]
    return {
        name: (torch.randn(rank, 4, generator=generator), torch.randn(rows, rank, generator=generator))
        for name in names
    }


def test_flux_is_fused_and_diffusers_takes_it_apart_again():
    from diffusers import FluxPipeline

    layers = flux_layers(3072)
    names = _layouts.flux(layers)
    assert names["lora_unet_double_blocks_11_txt_attn_qkv.lora_down.weight"].shape == (6, 4)
    assert names["lora_unet_single_blocks_37_linear1.lora_up.weight"].shape == (7 * 3072, 8)
    back = FluxPipeline.lora_state_dict(dict(names))
    for module, (a, b) in layers.items():
        assert torch.equal(back.pop(f"transformer.{module}.lora_A.weight"), a)
        assert torch.equal(back.pop(f"transformer.{module}.lora_B.weight"), b)
    assert all(
        name.endswith((".attn.to_v.lora_A.weight", ".attn.to_v.lora_B.weight")) or "proj_mlp" in name for name in back
    )
    assert not any(tensor.any() for tensor in back.values())  # layers that had no adapter


def test_transformers_go_to_comfyui_by_diffusers_names(tmp_path):
    family = MODELS.get("flux")
    pipeline = tiny("flux", family.published[0])
    output = run(tmp_path, pipeline, "flux")
    exported = load_file(export(output, "comfyui", tmp_path / "out"))
    made = load_file(output / "adapter" / "pytorch_lora_weights.safetensors")
    assert exported.keys() == made.keys() and all(torch.equal(exported[k], made[k]) for k in made)


def test_krea_2_has_its_own_names_and_diffusers_takes_them_back():
    from diffusers import Krea2Pipeline

    layers = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_gate", "ff.gate", "ff.up", "ff.down")
    places = ("transformer_blocks.27", "text_fusion.layerwise_blocks.1", "text_fusion.refiner_blocks.0")
    made = {f"{place}.{layer}": (torch.rand(2, 4), torch.rand(3, 2)) for place in places for layer in layers}
    back = Krea2Pipeline.lora_state_dict(_layouts.krea2(made))
    for module, (a, b) in made.items():
        assert torch.equal(back.pop(f"transformer.{module}.lora_A.weight"), a)
        assert torch.equal(back.pop(f"transformer.{module}.lora_B.weight"), b)
    assert not back
    with pytest.raises(KeyError, match="img_in"):
        _layouts.krea2({"img_in": (torch.rand(2, 4), torch.rand(3, 2))})


def test_what_cannot_be_is_said_in_a_line(tiny_sd_factory, tmp_path):
    output = run(tmp_path, tiny_sd_factory(), dora=True)
    with pytest.raises(UserError, match=r"--format kohya: the adapter is a DoRA.* Choose merged\."):
        export(output, "kohya", tmp_path / "out")
    with pytest.raises(UserError, match=r"no such format. Choose one of kohya, comfyui, peft, merged"):
        export(output, "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="there is no adapter: neither it nor its folder adapter holds"):
        export(tmp_path, "kohya", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(UserError, match="there is something already"):
        export(output, "merged", tmp_path / "full")
    (output / "recipe.yaml").write_text(RECIPE.format(name="sana", checkpoint=tmp_path))
    with pytest.raises(UserError, match=r"\(sana\) have no layout of that name. Choose one of peft, merged"):
        export(output, "kohya", tmp_path / "out")
    (output / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"no recipe.yaml beside this adapter.*--recipe"):
        export(output, "merged", tmp_path / "out")


def test_a_file_of_another_format_is_no_adapter(tmp_path):
    adapter_file.write(tmp_path / "a.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, {})
    with pytest.raises(UserError, match="not those of one network's LoRA in diffusers' format"):
        export(tmp_path / "a.safetensors", "peft", tmp_path / "out")
    (tmp_path / "b.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"is empty or cut short"):
        export(tmp_path / "b.safetensors", "peft", tmp_path / "out")


def test_an_adapter_of_an_earlier_update_is_exported_by_its_number(tiny_sd_factory, tmp_path):
    output = run(tmp_path, tiny_sd_factory())
    early = output / "adapters" / "step-000020"
    (output / "adapter").rename(tmp_path / "late")
    early.parent.mkdir()
    (tmp_path / "late").rename(early)
    path = export(output, "kohya", step=20, output=tmp_path / "out")  # its model is the run's
    assert path.name == "my-run-step-20.safetensors"
    assert adapter_file.locate(early)[1] == output / "recipe.yaml"
    with pytest.raises(UserError, match=r"no adapter of update 7: .* It has those of 20\. train\.export_every"):
        export(output, "kohya", step=7)
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        export(tmp_path / "nowhere", "kohya", step=7)

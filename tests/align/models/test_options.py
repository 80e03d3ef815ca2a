"""What a recipe may choose about any family's frozen parts: kernels, merged adapters, off-loading, compilation."""

import pytest
import torch
from tiny_families import flux, pixart, sana, sd, sdxl

from align.errors import UserError
from align.models import _options
from align.models.auto import AutoConfig
from align.models.flux import Flux, FluxConfig
from align.models.pixart import PixArt, PixArtConfig
from align.models.sana import Sana, SanaConfig
from align.models.sd import SDConfig, StableDiffusion
from align.models.sdxl import SDXLConfig, StableDiffusionXL
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.registry import MODELS

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red circle", "two stars"]


def tiny_sd():
    return sd.build(StableDiffusion.published[0])


def outputs(model):
    z = torch.randn(2, *model.latent_shape((32, 32)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.denoiser()(z, torch.tensor(0.6), model.text.encode(PROMPTS))


def test_a_kernel_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr(_options, "PACKAGES", {"xformers": "no-such-xformers", "flash": "no_such_flash"})
    problems = list(SDConfig(checkpoint="a/b", attention="xformers").conflicts({}))
    assert problems[0][0] == ".attention" and "needs the package no-such-xformers" in problems[0][1]
    with pytest.raises(UserError, match="flash needs the package no-such-flash"):
        StableDiffusion(SDConfig(checkpoint="tiny", attention="flash"), tiny_sd())


def test_a_kernel_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(_options, "PACKAGES", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="need a CUDA device"):
        StableDiffusion(SDConfig(checkpoint="tiny", attention="xformers"), tiny_sd())


@pytest.mark.parametrize("family", ["krea2", "qwen_image", "sana", "z_image"])
def test_a_kernel_that_would_change_what_a_family_computes_is_refused(family, monkeypatch, tmp_path):
    monkeypatch.setattr(_options, "PACKAGES", {})
    found = MODELS.get(family)
    ((key, problem),) = found.Config(checkpoint="a/b", attention="xformers").conflicts({})
    assert key == ".attention" and "Use sdpa" in problem
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{found.pipelines[0]}"}}')
    with pytest.raises(UserError, match=r"model\.attention=flash: .* Use sdpa"):  # before any weights are read
        MODELS.get("auto")(AutoConfig(checkpoint=str(tmp_path), attention="flash"))


def test_a_checkpoint_of_another_process_than_the_familys_is_refused():
    """Playground 2.5's EDM scheduler has no betas; LCM's distilled UNets are told the guidance scale."""
    edm = tiny_sd()
    edm.scheduler = diffusers.EDMDPMSolverMultistepScheduler()
    with pytest.raises(UserError, match="no beta_schedule"):
        StableDiffusion(SDConfig(checkpoint="tiny"), edm)
    distilled = tiny_sd()
    distilled.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UserError, match="told the guidance scale"):
        StableDiffusion(SDConfig(checkpoint="tiny"), distilled)
    shifted = sana.build(Sana.published[0])
    shifted.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(UserError, match="no use_flow_sigmas"):
        Sana(SanaConfig(checkpoint="tiny"), shifted)


def test_schnells_t5_is_as_long_as_it_was_trained_with():
    lengths = [Flux(FluxConfig(checkpoint="tiny"), flux.build(one)).text.t5_tokenizer.length for one in Flux.published]
    assert lengths == [512, 256]


def test_a_base_adapter_is_part_of_the_base(tmp_path):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd())
    plain = outputs(model)
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    with torch.no_grad():
        for name, value in adapter.state_dict().items():
            if "lora_B" in name:
                value.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    adapter.export(tmp_path)
    expected = outputs(model)
    assert float((expected - plain).norm() / plain.norm()) > 1e-2
    merged = StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(tmp_path)), tiny_sd())
    assert not any("lora" in name for name, _ in merged.network.named_parameters())
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-4, atol=1e-5)
    again = Adapter(AdapterConfig(rank=2), merged.network, list(merged.lora_targets), seed=0)
    with again.disabled():
        torch.testing.assert_close(outputs(merged), expected, rtol=1e-4, atol=1e-5)


def test_a_base_adapter_that_cannot_be_merged_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model\.base_adapter=.*could not be merged"):
        StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(tmp_path)), tiny_sd())
    with pytest.raises(UserError, match="loads no adapters into a PixArtSigmaPipeline"):
        PixArt(PixArtConfig(checkpoint="tiny", base_adapter="x"), pixart.build(PixArt.published[0]))


def lora(folder, **changes):
    """An adapter's file of the tiny U-Net in `folder`, with these tensors added."""
    from safetensors.torch import load_file, save_file

    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd())
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    adapter.export(folder)
    file = folder / "pytorch_lora_weights.safetensors"
    save_file({**load_file(file), **changes}, file)
    return file


def test_a_base_adapter_of_another_model_is_not_merged_in_part(tmp_path):
    layer = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"
    more = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    lora(tmp_path, **more)
    with pytest.raises(UserError, match=r"^model\.base_adapter=.*: 1 of its \d+ layers have no place in this model"):
        StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(tmp_path)), tiny_sd())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!doctype html><html></html>", "a web page"),
        (b"\x80\x02}q\x00.", "a torch pickle, which can run code and is not read"),
    ],
)
def test_a_base_adapter_is_read_as_every_adapter_is(tmp_path, content, said):
    """The one reader of adapters says what a file is instead."""
    from align.policy import adapter_file

    file = lora(tmp_path)
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^model\.base_adapter=.*{said}"):
        StableDiffusion(SDConfig(checkpoint="tiny", base_adapter=str(tmp_path)), tiny_sd())
    with pytest.raises(UserError, match=said):
        adapter_file.read(file)


def test_off_loaded_encoders_are_moved_for_new_prompts_only():
    model = StableDiffusion(SDConfig(checkpoint="tiny", offload_text=True), tiny_sd())
    model.to("cpu")
    moves = []
    to = model.text.modules[0].to
    model.text.modules[0].to = lambda device: moves.append(str(device)) or to(device)
    first = model.text.encode(PROMPTS).tensors["text"]
    assert moves == ["cpu", "cpu"]  # there, and back
    assert torch.equal(model.text.encode(PROMPTS).tensors["text"], first) and len(moves) == 2
    model.text.encode(["another"])
    assert len(moves) == 4
    plain = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd())
    assert torch.equal(plain.text.encode(PROMPTS).tensors["text"], first)


def test_moving_a_model_leaves_off_loaded_encoders_where_they_are():
    model = StableDiffusion(SDConfig(checkpoint="tiny", offload_text=True), tiny_sd())
    model.to("meta")
    devices = {name: next(module.parameters()).device.type for name, module in model.components().items()}
    assert devices == {"unet": "meta", "vae": "meta", "text_encoder": "cpu"}


def test_compiling_compiles_the_repeated_blocks():
    model = Flux(FluxConfig(checkpoint="tiny"), flux.build(Flux.published[0]))
    model.compile()
    compiled = {type(module).__name__ for module in model.network.modules() if module._compiled_call_impl is not None}
    assert compiled == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_an_autoencoder_that_overflows_in_half_precision_is_not_run_in_it(force_upcast, dtype):
    pipeline = sdxl.build(StableDiffusionXL.published[0])
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    pipeline.vae.half()
    assert StableDiffusionXL(SDXLConfig(checkpoint="tiny"), pipeline).codec.vae.dtype == dtype


def test_an_unknown_pipeline_is_refused_with_the_known_ones(tmp_path, caplog):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(UserError) as caught:
        MODELS.get("auto")(AutoConfig(checkpoint=str(tmp_path)))
    assert "WanPipeline" in str(caught.value) and "FluxPipeline, " in str(caught.value)
    assert "docs/develop/families.md" in str(caught.value) and "\n" not in str(caught.value)
    with caplog.at_level("INFO", logger="align"):
        MODELS.get("auto")(AutoConfig(checkpoint="tiny"), tiny_sd())
    assert "tiny is a StableDiffusionPipeline: model.name=sd" in caplog.text
    assert not [one for one in caplog.records if one.levelname == "WARNING"], "every command would say it"

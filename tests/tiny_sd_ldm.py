"""The weights of a tiny Stable Diffusion under the names of the original (LDM) code: a single-file checkpoint."""

import re
from collections.abc import Callable

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, layers: int) -> str:
    for resnet, original in UNET_RESNET.items():
        name = re.sub(rf"(resnets\.\d+)\.{resnet}\b", rf"\1.{original}", name)

    def place(pattern: str, where: Callable[..., str]) -> None:
        nonlocal name
        name = re.sub(pattern, lambda found: where(*map(int, found.groups())), name)

    place(r"^down_blocks\.(\d+)\.resnets\.(\d+)", lambda i, j: f"input_blocks.{1 + i * (layers + 1) + j}.0")
    place(r"^down_blocks\.(\d+)\.attentions\.(\d+)", lambda i, j: f"input_blocks.{1 + i * (layers + 1) + j}.1")
    place(r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda i: f"input_blocks.{1 + i * (layers + 1) + layers}.0.op")
    place(r"^up_blocks\.(\d+)\.resnets\.(\d+)", lambda i, j: f"output_blocks.{i * (layers + 1) + j}.0")
    place(r"^up_blocks\.(\d+)\.attentions\.(\d+)", lambda i, j: f"output_blocks.{i * (layers + 1) + j}.1")
    place(r"^up_blocks\.(\d+)\.upsamplers\.0", lambda i: f"output_blocks.{i * (layers + 1) + layers}.1")
    place(r"^mid_block\.resnets\.(\d+)", lambda j: f"middle_block.{2 * j}")
    place(r"^mid_block\.attentions\.0", lambda: "middle_block.1")
    for ours, original in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        name = re.sub(rf"^{re.escape(ours)}\b", original, name)
    return f"model.diffusion_model.{name}"


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "attentions" in name:
        for ours, original in VAE_ATTENTION.items():
            name = name.replace(f"attentions.0.{ours}", f"attn_1.{original}")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda i: f"up.{levels - 1 - int(i[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda i: f"up.{levels - 1 - int(i[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda j: f"mid.block_{int(j[1]) + 1}", name)
    return f"first_stage_model.{name.replace('mid_block.', 'mid.')}"


def ldm_state_dict(pipeline):
    """{original name: tensor} of the whole pipeline."""
    layers = pipeline.unet.config.layers_per_block
    levels = len(pipeline.vae.config.block_out_channels)
    state = {unet_name(name, layers): tensor for name, tensor in pipeline.unet.state_dict().items()}
    for name, tensor in pipeline.vae.state_dict().items():
        linear = "attentions" in name and tensor.ndim == 2
        state[vae_name(name, levels)] = tensor[:, :, None, None] if linear else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        state["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    return {name: tensor.contiguous() for name, tensor in state.items()}

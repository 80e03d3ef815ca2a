"""How other programs name the layers of an adapter: sd-scripts ("kohya") and ComfyUI.

An adapter is {module path in diffusers: (A (r, in), B (out, r))} at alpha = r; a layout turns it into the tensors of a
file. A family says which of these it has (`DiffusionModel.layouts`). The names are those of sd-scripts' networks, held
by the tests against diffusers' own converters (diffusers.loaders.lora_conversion_utils).
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Layers = Mapping[str, tuple[Tensor, Tensor]]
Layout = Callable[[Layers], dict[str, Tensor]]


def unet(layers: Layers) -> dict[str, Tensor]:
    """sd-scripts for SD 1.x and 2.x, and what ComfyUI reads for any UNet: diffusers' paths joined by underscores."""
    return _kohya(layers)


def sgm_unet(layers: Layers, layers_per_block: int = 2) -> dict[str, Tensor]:
    """sd-scripts for SDXL, whose UNet counts its blocks as Stability's sgm does."""
    return _kohya({_sgm(module, layers_per_block + 1): pair for module, pair in layers.items()})


def flux(layers: Layers) -> dict[str, Tensor]:
    """sd-scripts for FLUX.1, where q, k and v (in single blocks the MLP's input too) are one matrix.

    Adapters side by side are one of the summed rank: A = [A_q; A_k; A_v], B = diag(B_q, B_k, B_v).
    """
    fused: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in layers.items():
        for pattern, parts, name in FLUX_FUSED:
            if (found := re.fullmatch(pattern, module)) and found["part"] in parts:
                target = name.format(found["block"])
                if target not in fused:
                    prefix = module.removesuffix(found["part"])
                    fused[target] = _fused([layers.get(f"{prefix}{part}") for part in parts], parts)
                break
        else:
            fused[_flux(module)] = pair
    return _kohya(fused)


def transformer(layers: Layers) -> dict[str, Tensor]:
    """What ComfyUI reads for transformers: diffusers' own names, as in the adapter's file."""
    named = {}
    for module, (a, b) in layers.items():
        named[f"transformer.{module}.lora_A.weight"] = a
        named[f"transformer.{module}.lora_B.weight"] = b
    return named


def krea2(layers: Layers) -> dict[str, Tensor]:
    """Krea's own names of its network's layers, which ComfyUI and its authors' trainer have."""
    named = {}
    for module, (a, b) in layers.items():
        found = re.fullmatch(r"(transformer_blocks|text_fusion\.\w+)\.(\d+)\.(attn|ff)\.([\w.]+)", module)
        if found is None:
            raise KeyError(module)
        blocks, number, kind, layer = found.groups()
        own = blocks.replace("transformer_blocks", "blocks").replace("text_fusion", "txtfusion")
        name = f"diffusion_model.{own}.{number}." + (f"attn.{KREA2[layer]}" if kind == "attn" else f"mlp.{layer}")
        named |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return named


KREA2 = {"to_q": "wq", "to_k": "wk", "to_v": "wv", "to_out.0": "wo", "to_gate": "gate"}


def _kohya(layers: Layers) -> dict[str, Tensor]:
    named = {}
    for module, (a, b) in layers.items():
        key = f"lora_unet_{module.replace('.', '_')}"
        named[f"{key}.lora_down.weight"] = a
        named[f"{key}.lora_up.weight"] = b
        named[f"{key}.alpha"] = torch.tensor(float(len(a)))
    return named


SGM_NAMES = (
    (r"resnets\.(\d+)\.", "0."),
    (r"attentions\.(\d+)\.", "1."),
    (r"upsamplers\.0\.", "2."),
    (r"\bconv1$", "in_layers.2"),
    (r"\bconv2$", "out_layers.3"),
    (r"\btime_emb_proj$", "emb_layers.1"),
    (r"\bconv_shortcut$", "skip_connection"),
)
SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _sgm(module: str, per_block: int) -> str:
    """down_blocks.1.attentions.0.proj_in -> input_blocks.4.1.proj_in, where per_block is SDXL's 3: on the way down two
    layers and a down-sampler, on the way up three layers."""
    if module in SGM_OUTSIDE:
        return SGM_OUTSIDE[module]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module):
        place = 2 * int(found[2]) + (found[1] == "attentions")
        return _renamed(f"middle_block.{place}.{found[3]}")
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", module)
    if found is None:
        raise KeyError(module)
    way, block, kind, layer, rest = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{per_block * (int(block) + 1)}.0.op"
    number = int(block) * per_block + (per_block - 1 if kind == "upsamplers" else int(layer))
    name = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
    return f"{name}.{_renamed(f'{kind}.{layer}.{rest}')}"


def _renamed(rest: str) -> str:
    for pattern, name in SGM_NAMES:
        rest = re.sub(pattern, name, rest, count=1)
    return rest


QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
FLUX_FUSED = (
    (r"transformer_blocks\.(?P<block>\d+)\.attn\.(?P<part>to_[qkv])", QKV, "double_blocks.{}.img_attn.qkv"),
    (r"transformer_blocks\.(?P<block>\d+)\.attn\.(?P<part>add_[qkv]_proj)", ADDED, "double_blocks.{}.txt_attn.qkv"),
    (
        r"single_transformer_blocks\.(?P<block>\d+)\.(?P<part>attn\.to_[qkv]|proj_mlp)",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "single_blocks.{}.linear1",
    ),
)
FLUX_NAMES = {
    "transformer_blocks": ("double_blocks", {
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
    }),
    "single_transformer_blocks": ("single_blocks", {"proj_out": "linear2", "norm.linear": "modulation.lin"}),
}  # fmt: skip
MLP_RATIO = 4  # proj_mlp puts out four times as much as q


def _flux(module: str) -> str:
    """transformer_blocks.3.attn.to_out.0 -> double_blocks.3.img_attn.proj."""
    kind, _, rest = module.partition(".")
    block, _, layer = rest.partition(".")
    name, known = FLUX_NAMES[kind]
    return f"{name}.{block}.{known[layer]}"


def _fused(pairs: list[tuple[Tensor, Tensor] | None], parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """One adapter from those side by side; where a layer has none, zeros stand in."""
    there = next(pair for pair in pairs if pair is not None)
    rank, width = there[0].shape
    q = next((len(pair[1]) for pair, part in zip(pairs, parts, strict=True) if pair and part != "proj_mlp"), None)
    rows = q if q is not None else len(there[1]) // MLP_RATIO
    filled = [
        pair
        or (there[0].new_zeros(rank, width), there[1].new_zeros(rows * (MLP_RATIO if p == "proj_mlp" else 1), rank))
        for pair, p in zip(pairs, parts, strict=True)
    ]
    return torch.cat([a for a, _ in filled]), torch.block_diag(*(b for _, b in filled))

"""A latent reward in DiNa-LRM's layout on tiny random weights, and its score written out."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu, rms_norm, silu

from align.latent.features import Features
from align.latent.head import Head
from align.registry import MODELS, build

HEAD = {"use_proj_in": False, "width": -1, "out_dim": 1, "num_queries": 3, "num_attn_heads": 4, "dropout": 0.0}


def folder(path: Path, base: str, image=(1,), text=(), *, lora: bool = False) -> Path:
    """config.json and a random head for the base in the folder `base`."""
    model = build(MODELS, MODELS.look_up({"name": "auto", "checkpoint": base}))
    features = Features(model, image, text)
    torch.manual_seed(3)
    head = Head(features.tokens, embedding=features.embedding, image=len(image), text=len(text), num_queries=3, heads=4)
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.ndim > 1 else 0.2))
    (path / "checkpoint").mkdir(parents=True)
    said = {"backbone_model_id": base, "visual_head_idx": list(image), "text_head_idx": list(text)}
    said |= {"use_lora": lora, "freeze_backbone": False, "use_text_features": bool(text), "reward_head": HEAD}
    (path / "config.json").write_text(json.dumps({"model": said, "training": {"add_noise": True}}))
    if lora:
        torch.save(head.state_dict(), path / "checkpoint" / "rm_head.pt")
    else:
        save_file(head.state_dict(), path / "checkpoint" / "rm_head.safetensors")
    return path


def score(state: dict, image: list, text: list, e: torch.Tensor) -> torch.Tensor:
    """The head in one straight line, heads of attention one after another."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layers(kind, tokens):
        out = []
        for k, h in enumerate(tokens):
            at = f"layer_adapters_{kind}.{k}"
            film = linear(silu(linear(e, f"{at}.cond_mlp.0")), f"{at}.cond_mlp.2")
            gamma, beta = film[:, : h.shape[-1]], film[:, h.shape[-1] :]
            out.append(linear(h * (1 + gamma[:, None]) + beta[:, None] + state[f"{at}.layer_embed"], f"{at}.proj"))
        return linear(torch.cat(out, -1), f"agg_{kind}")

    def normed(x, name):
        return rms_norm(x, x.shape[-1:], state[f"{name}.weight"])

    def attend(q, tokens, at, kind, norm, gated):
        c = normed(tokens, f"{at}.{norm}")
        k, v = linear(c, f"{at}.to_k_{kind}"), linear(c, f"{at}.to_v_{kind}")
        if gated:
            v = v * torch.sigmoid(linear(silu(linear(c, f"{at}.gate_{kind}.0")), f"{at}.gate_{kind}.2"))
        size = q.shape[-1] // 4
        parts = [slice(h * size, (h + 1) * size) for h in range(4)]
        return torch.cat([(q[..., p] @ k[..., p].mT / size**0.5).softmax(-1) @ v[..., p] for p in parts], -1)

    seen, words = layers("visual", image), layers("text", text) if text else None
    q = state["query_tokens"].expand(len(e), -1, -1)
    asked = linear(normed(q, "attn1.norm_q"), "attn1.to_q")
    read = attend(asked, seen, "attn1", "vis", "norm_v", True)
    if words is not None:
        read = read + attend(asked, words, "attn1", "text", "norm_t", True)
    q = q + linear(read, "attn1.to_out.0")
    asked = linear(normed(q, "attn2.norm_q"), "attn2.to_q")
    q = q + linear(attend(asked, seen, "attn2", "vis", "norm_v", False), "attn2.to_out.0")
    q = q + linear(gelu(linear(normed(q, "norm_ff"), "ff.0")), "ff.2")
    return linear(q, "head").mean(1)[:, 0]


def adapted(transformer: nn.Module, path: Path) -> nn.Module:
    """The transformer with a random LoRA on what DiNa-LRM adapts, saved by peft as its trainer saves it."""
    from peft import LoraConfig, get_peft_model

    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    made = get_peft_model(transformer, LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    made.save_pretrained(path)
    return made

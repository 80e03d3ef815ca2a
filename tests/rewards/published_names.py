"""Names and shapes of the tensors in published checkpoints, written down from the files themselves and their sources.

Nothing here is derived from the networks that load them: a library that renames its modules must still read these.
"""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def hf_layers(start: str, layers: int, width: int, inner: int) -> Shapes:
    """Of CLIP's and SigLIP's towers."""
    found: Shapes = {}
    for n in range(layers):
        at = f"{start}.encoder.layers.{n}"
        for part in ("k", "v", "q", "out"):
            found |= linear(f"{at}.self_attn.{part}_proj", width, width)
        found |= norm(f"{at}.layer_norm1", width) | norm(f"{at}.layer_norm2", width)
        found |= linear(f"{at}.mlp.fc1", inner, width) | linear(f"{at}.mlp.fc2", width, inner)
    return found


def clip(text: dict[str, int], vision: dict[str, int], projection: int) -> Shapes:
    """openai/clip-vit-*, laion/CLIP-ViT-*, yuvalkirstain/PickScore_v1 (transformers of 2021 to 2023)."""
    t, v = text["width"], vision["width"]
    positions = (vision["side"] // vision["patch"]) ** 2 + 1
    return {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (text["words"], t),
        "text_model.embeddings.position_embedding.weight": (text["length"], t),
        "text_model.embeddings.position_ids": (1, text["length"]),
        **hf_layers("text_model", text["layers"], t, text["inner"]),
        **norm("text_model.final_layer_norm", t),
        "vision_model.embeddings.class_embedding": (v,),
        "vision_model.embeddings.patch_embedding.weight": (v, 3, vision["patch"], vision["patch"]),
        "vision_model.embeddings.position_embedding.weight": (positions, v),
        "vision_model.embeddings.position_ids": (1, positions),
        **norm("vision_model.pre_layrnorm", v),
        **hf_layers("vision_model", vision["layers"], v, vision["inner"]),
        **norm("vision_model.post_layernorm", v),
        "visual_projection.weight": (projection, v),
        "text_projection.weight": (projection, t),
    }


def siglip(text: dict[str, int], vision: dict[str, int], *, naflex: bool = False) -> Shapes:
    """google/siglip-*, google/siglip2-* and, naflex, google/siglip2-*-naflex."""
    t, v, patch = text["width"], vision["width"], vision["patch"]
    pixels = (v, 3 * patch**2) if naflex else (v, 3, patch, patch)
    return {
        "logit_scale": (1,),
        "logit_bias": (1,),
        "text_model.embeddings.token_embedding.weight": (text["words"], t),
        "text_model.embeddings.position_embedding.weight": (text["length"], t),
        **hf_layers("text_model", text["layers"], t, text["inner"]),
        **norm("text_model.final_layer_norm", t),
        **linear("text_model.head", v, t),
        "vision_model.embeddings.patch_embedding.weight": pixels,
        "vision_model.embeddings.patch_embedding.bias": (v,),
        "vision_model.embeddings.position_embedding.weight": ((vision["side"] // patch) ** 2, v),
        **hf_layers("vision_model", vision["layers"], v, vision["inner"]),
        **norm("vision_model.post_layernorm", v),
        "vision_model.head.probe": (1, 1, v),
        "vision_model.head.attention.in_proj_weight": (3 * v, v),
        "vision_model.head.attention.in_proj_bias": (3 * v,),
        **linear("vision_model.head.attention.out_proj", v, v),
        **norm("vision_model.head.layernorm", v),
        **linear("vision_model.head.mlp.fc1", vision["inner"], v),
        **linear("vision_model.head.mlp.fc2", v, vision["inner"]),
    }


def dino(width: int, layers: int, inner: int, side: int, patch: int, *, version: int = 2) -> Shapes:
    """facebook/dinov2-* and, version 1, facebook/dino-vit*."""
    found: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + (side // patch) ** 2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **norm("layernorm", width),
    }
    first, second = ("norm1", "norm2") if version == 2 else ("layernorm_before", "layernorm_after")
    up, down = ("mlp.fc1", "mlp.fc2") if version == 2 else ("intermediate.dense", "output.dense")
    for n in range(layers):
        at = f"encoder.layer.{n}"
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            found |= linear(f"{at}.attention.{part}", width, width)
        found |= norm(f"{at}.{first}", width) | norm(f"{at}.{second}", width)
        found |= linear(f"{at}.{up}", inner, width) | linear(f"{at}.{down}", width, inner)
        if version == 2:
            found |= {f"{at}.layer_scale{k}.lambda1": (width,) for k in (1, 2)}
    return found | ({"embeddings.mask_token": (1, width)} if version == 2 else {})


def blip_itm(text: dict[str, int], vision: dict[str, int], projection: int) -> Shapes:
    """Salesforce/blip-itm-*."""
    t, v, patch = text["width"], vision["width"], vision["patch"]
    positions = (vision["side"] // patch) ** 2 + 1
    found: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, v),
        "vision_model.embeddings.position_embedding": (1, positions, v),
        **{
            f"vision_model.embeddings.patch_embedding.{k}": s
            for k, s in (("weight", (v, 3, patch, patch)), ("bias", (v,)))
        },
        **norm("vision_model.post_layernorm", v),
        "text_encoder.embeddings.word_embeddings.weight": (text["words"], t),
        "text_encoder.embeddings.position_embeddings.weight": (512, t),
        "text_encoder.embeddings.position_ids": (1, 512),
        **norm("text_encoder.embeddings.LayerNorm", t),
        **linear("vision_proj", projection, v),
        **linear("text_proj", projection, t),
        **linear("itm_head", 2, t),
    }
    for n in range(vision["layers"]):
        at = f"vision_model.encoder.layers.{n}"
        found |= linear(f"{at}.self_attn.qkv", 3 * v, v) | linear(f"{at}.self_attn.projection", v, v)
        found |= norm(f"{at}.layer_norm1", v) | norm(f"{at}.layer_norm2", v)
        found |= linear(f"{at}.mlp.fc1", vision["inner"], v) | linear(f"{at}.mlp.fc2", v, vision["inner"])
    for n in range(text["layers"]):
        at = f"text_encoder.encoder.layer.{n}"
        for kind, seen in (("attention", t), ("crossattention", v)):
            found |= linear(f"{at}.{kind}.self.query", t, t)
            found |= linear(f"{at}.{kind}.self.key", t, seen) | linear(f"{at}.{kind}.self.value", t, seen)
            found |= linear(f"{at}.{kind}.output.dense", t, t) | norm(f"{at}.{kind}.output.LayerNorm", t)
        found |= linear(f"{at}.intermediate.dense", text["inner"], t)
        found |= linear(f"{at}.output.dense", t, text["inner"]) | norm(f"{at}.output.LayerNorm", t)
    return found


def open_clip(text: dict[str, int], vision: dict[str, int], projection: int) -> Shapes:
    """HPS_v2*_compressed.pt below "state_dict", and open_clip's own files of a ViT."""
    t, v, patch = text["width"], vision["width"], vision["patch"]
    found: Shapes = {
        "logit_scale": (),
        "positional_embedding": (text["length"], t),
        "text_projection": (t, projection),
        "token_embedding.weight": (text["words"], t),
        **norm("ln_final", t),
        "visual.class_embedding": (v,),
        "visual.positional_embedding": ((vision["side"] // patch) ** 2 + 1, v),
        "visual.proj": (v, projection),
        "visual.conv1.weight": (v, 3, patch, patch),
        **norm("visual.ln_pre", v),
        **norm("visual.ln_post", v),
    }
    for start, tower in (("transformer", text), ("visual.transformer", vision)):
        width, inner = tower["width"], tower["inner"]
        for n in range(tower["layers"]):
            at = f"{start}.resblocks.{n}"
            found |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
            found |= linear(f"{at}.attn.out_proj", width, width) | norm(f"{at}.ln_1", width) | norm(f"{at}.ln_2", width)
            found |= linear(f"{at}.mlp.c_fc", inner, width) | linear(f"{at}.mlp.c_proj", width, inner)
    return found


def mps_cross(dim: int, layers: int, heads: int) -> Shapes:
    """The cross-attention of MPS_overall_checkpoint.pth: heads of 64, feedforwards of 4 dim, biases only of norms."""
    found: Shapes = {}
    for n in range(layers):
        at, own = f"cross_model.layers.{n}.0.fn", f"cross_model.layers.{n}.1.fn"
        found |= norm(f"{at}.norm", dim) | linear(f"{at}.to_q", 64 * heads, dim, bias=False)
        found |= linear(f"{at}.to_kv", 128, dim, bias=False) | linear(f"{at}.to_out", dim, 64 * heads, bias=False)
        found |= linear(f"{at}.ff.0", 8 * dim, dim, bias=False) | linear(f"{at}.ff.2", dim, 4 * dim, bias=False)
        found |= norm(f"{own}.norm", dim) | linear(f"{own}.attn_out", dim, 64 * heads, bias=False)
        found |= linear(f"{own}.fused_attn_ff_proj", 64 * heads + 128 + 8 * dim, dim, bias=False)
        found |= linear(f"{own}.ff_out.1", dim, 4 * dim, bias=False) | {f"{own}.rotary_emb.inv_freq": (32,)}
    return found

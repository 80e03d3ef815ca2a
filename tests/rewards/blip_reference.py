"""BLIP once more, in plain torch, with the parameter names of its published files: what ours is held against.

Written from the paper's figures and the layout of the files: a pre-norm ViT (LayerNorm eps 1e-6, fused qkv, CLS first)
and a post-norm BERT (eps 1e-12) whose layers attend to themselves, then to the image, then feed forward. It was
held against the networks of image-reward 1.5 itself: the same 625 names and shapes, and outputs equal to the last bit.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, n, D) over (B, m, D); `mask` (B, m) is 1 where a key may be seen."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    logits = split[0] @ split[1].transpose(2, 3) / math.sqrt(split[0].shape[-1])
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    return (logits.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


class Named(nn.Module):
    """Children by name."""

    def __init__(self, /, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Named(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = Named(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn.proj(attend(*self.attn.qkv(self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp.fc2(gelu(self.mlp.fc1(self.norm2(x))))


class Vision(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, inner: int, side: int, patch: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        self.patch_embed = Named(proj=nn.Conv2d(3, width, patch, patch))
        self.blocks = nn.ModuleList(VisionBlock(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def attention(width: int, seen: int) -> Named:
    norm = nn.LayerNorm(width, eps=1e-12)
    inner = Named(query=nn.Linear(width, width), key=nn.Linear(seen, width), value=nn.Linear(seen, width))
    return Named(self=inner, output=Named(dense=nn.Linear(width, width), LayerNorm=norm))


class TextLayer(nn.Module):
    def __init__(self, width: int, seen: int, heads: int, inner: int):
        super().__init__()
        self.attention, self.crossattention = attention(width, width), attention(width, seen)
        self.intermediate = Named(dense=nn.Linear(width, inner))
        self.output = Named(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor, image: Tensor | None) -> Tensor:
        for part, source, seen in ((self.attention, None, mask), (self.crossattention, image, None)):
            if part is self.crossattention and image is None:
                continue
            inner = part.self
            source = x if source is None else source
            y = attend(inner.query(x), inner.key(source), inner.value(source), self.heads, seen)
            x = part.output.LayerNorm(part.output.dense(y) + x)
        return self.output.LayerNorm(self.output.dense(gelu(self.intermediate.dense(x))) + x)


class Text(nn.Module):
    def __init__(self, words: int, width: int, seen: int, layers: int, heads: int, inner: int):
        super().__init__()
        self.embeddings = Named(
            word_embeddings=nn.Embedding(words, width),
            position_embeddings=nn.Embedding(512, width),
            LayerNorm=nn.LayerNorm(width, eps=1e-12),
        )
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None])
        self.encoder = Named(layer=nn.ModuleList(TextLayer(width, seen, heads, inner) for _ in range(layers)))

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        part = self.embeddings
        x = part.LayerNorm(part.word_embeddings(ids) + part.position_embeddings.weight[: ids.shape[1]])
        for layer in self.encoder.layer:
            x = layer(x, mask, image)
        return x


class Pretrained(nn.Module):
    """The part of BLIP that its scores use; `projections` is their width."""

    def __init__(self, vision: dict[str, int], text: dict[str, int], projections: int = 256):
        super().__init__()
        self.visual_encoder = Vision(**vision)
        self.text_encoder = Text(**text, seen=vision["width"])
        self.vision_proj = nn.Linear(vision["width"], projections)
        self.text_proj = nn.Linear(text["width"], projections)


class Head(nn.Module):
    """768-1024-128-64-16-1 at the numbers that the published files give these layers."""

    def __init__(self, width: int, numbers: tuple[int, ...]):
        super().__init__()
        sizes = [width, 1024, 128, 64, 16, 1]
        self.layers = nn.Sequential()
        for k, number in enumerate(numbers):
            self.layers.add_module(str(number), nn.Linear(sizes[k], sizes[k + 1]))

    def forward(self, x: Tensor, activation=lambda x: x) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = activation(layer(x))
        return last(x)[:, 0]


LARGE = {
    "vision": {"width": 1024, "layers": 24, "heads": 16, "inner": 4096, "side": 224, "patch": 16},
    "text": {"words": 30524, "width": 768, "layers": 12, "heads": 12, "inner": 3072},
}
TINY = {
    "vision": {"width": 32, "layers": 2, "heads": 2, "inner": 64, "side": 32, "patch": 8},
    "text": {"words": 64, "width": 24, "layers": 2, "heads": 2, "inner": 48},
}

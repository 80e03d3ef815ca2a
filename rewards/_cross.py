"""MPS's cross-attention: image tokens ask the prompt's tokens, layer by layer.

    x <- x + O A(Q n(x), K c, V c) + F(n(x))      n: LayerNorm, c: prompt tokens, F: SwiGLU, all on one input
    x <- x + O A(R Q n(x), R K n(x), V n(x)) + F(n(x))      R: rotary positions (Su et al. 2021, arXiv:2104.09864)

Keys and values have one head that all heads of the queries share (Shazeer 2019, arXiv:1911.02150). Parameters are named
as in the published file.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class CrossModel(nn.Module):
    """`layers` pairs of cross-attention and self-attention, each with its feedforward beside it."""

    def __init__(self, dim: int, layers: int, heads: int, head_dim: int = 64):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Added(CrossAttention(dim, heads, head_dim)), Added(SelfAttention(dim, heads, head_dim))])
            for _ in range(layers)
        )

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x (B, n, D), context (B, m, D), mask (B, 1, m) with 0 or -inf -> (B, n, D)."""
        for pair in self.layers:
            cross, own = pair  # type: ignore[misc]
            x = own(cross(x, context, mask))
        return x


class Added(nn.Module):
    """x + fn(x, ...)."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + self.fn(x, *others)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 8 * dim, bias=False), SwiGLU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        query = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.to_out(_attend(query, key, value, mask[:, None])) + self.ff(x)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.sizes = [heads * head_dim, head_dim, head_dim, 8 * dim]
        self.norm = nn.LayerNorm(dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, dim=-1)
        query = _rotate(query.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return self.attn_out(_attend(query, _rotate(key), value)) + self.ff_out(inner)


class SwiGLU(nn.Module):
    """(a, g) -> a silu(g)."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * silu(gate)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, n, d) over one shared head (B, m, d) -> (B, n, heads d)."""
    shared = [x[:, None].expand(-1, query.shape[1], -1, -1) for x in (key, value)]
    return scaled_dot_product_attention(query, *shared, attn_mask=mask).transpose(1, 2).flatten(2)


def _rotate(x: Tensor) -> Tensor:
    """Position p turns the pair (x_k, x_{k + d/2}) by the angle p 10000^(-2k/d); x (..., n, d)."""
    length, dim = x.shape[-2:]
    frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

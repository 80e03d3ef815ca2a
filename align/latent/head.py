"""A step-aware head on a diffusion network's features: tokens of several blocks and the embedding of t to one number.

    v   = A [ P_k( (1 + g_k(e)) h_k + b_k(e) + l_k ) ]_k      each block's tokens h_k, scaled and shifted by t
    q_1 = q + O( attn(q, K v, s(v) V v) + attn(q, K' w, s'(w) V' w) )     w: the same of text tokens; s gates in (0, 1)
    q_2 = q_1 + O'( attn(q_1, K'' v, V'' v) ),   r = mean over queries of h . (q_2 + MLP(norm q_2))

queries and contexts are RMS-normed before their maps. DiNa-LRM: Liu et al. 2026, arXiv 2602.11146, section 3.2; the
names of the tensors are those of its published file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Layer(nn.Module):
    """One block's tokens (B, N, D), modulated by t's embedding (B, E) -> (B, N, out)."""

    def __init__(self, tokens: int, embedding: int, width: int, out: int, *, projected: bool):
        super().__init__()
        self.proj_in = nn.Linear(tokens, width) if projected or tokens != width else nn.Identity()
        self.layer_embed = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.cond_mlp = nn.Sequential(nn.Linear(embedding, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.proj = nn.Linear(width, out)
        nn.init.zeros_(self.cond_mlp[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.cond_mlp[2].bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.cond_mlp(embedding)[:, None].chunk(2, -1)
        return self.proj(self.proj_in(tokens) * (1 + scale) + shift + self.layer_embed)


class Attention(nn.Module):
    """Queries (B, Q, D) read image tokens, and text tokens where there are some; values are gated token by token."""

    def __init__(self, width: int, heads: int, *, text: bool, gated: bool):
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_v = nn.RMSNorm(width), nn.RMSNorm(width)
        self.to_q, self.to_k_vis, self.to_v_vis = (nn.Linear(width, width) for _ in range(3))
        self.gate_vis = _gate(width) if gated else None
        if text:
            self.norm_t = nn.RMSNorm(width)
            self.to_k_text, self.to_v_text = nn.Linear(width, width), nn.Linear(width, width)
            self.gate_text = _gate(width) if gated else None
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, queries: Tensor, image: Tensor, text: Tensor | None) -> Tensor:
        asked = self.to_q(self.norm_q(queries))
        seen = self.norm_v(image)
        read = self._read(asked, self.to_k_vis(seen), _gated(self.to_v_vis(seen), seen, self.gate_vis))
        if text is not None:
            words = self.norm_t(text)
            read = read + self._read(asked, self.to_k_text(words), _gated(self.to_v_text(words), words, self.gate_text))
        return queries + self.to_out(read)

    def _read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Head(nn.Module):
    """Tokens of `image` and `text` blocks, each (B, N, tokens), and the embedding of t (B, embedding) -> (B,)."""

    def __init__(
        self,
        tokens: int,
        *,
        embedding: int,
        image: int,
        text: int,
        width: int = -1,
        num_queries: int = 4,
        heads: int = 8,
        projected: bool = False,
    ):
        super().__init__()
        width = tokens if width == -1 else width
        told = tokens, embedding, width, width // 4
        self.layer_adapters_visual = nn.ModuleList([Layer(*told, projected=projected) for _ in range(image)])
        self.layer_adapters_text = nn.ModuleList([Layer(*told, projected=projected) for _ in range(text)])
        self.agg_visual = nn.Linear(image * (width // 4), width)
        self.agg_text = nn.Linear(text * (width // 4), width) if text else None
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, num_queries, width))
        self.attn1 = Attention(width, heads, text=text > 0, gated=True)
        self.attn2 = Attention(width, heads, text=False, gated=False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 1)

    def forward(self, image: Sequence[Tensor], text: Sequence[Tensor], embedding: Tensor) -> Tensor:
        pairs = zip(self.layer_adapters_visual, image, strict=True)
        seen = self.agg_visual(torch.cat([layer(tokens, embedding) for layer, tokens in pairs], -1))
        words = None
        if self.agg_text is not None:
            pairs = zip(self.layer_adapters_text, text, strict=True)
            words = self.agg_text(torch.cat([layer(tokens, embedding) for layer, tokens in pairs], -1))
        queries = self.attn1(self.query_tokens.expand(len(embedding), -1, -1), seen, words)
        queries = self.attn2(queries, seen, None)
        queries = queries + self.ff(self.norm_ff(queries))
        return self.head(queries).mean(1)[:, 0]


def _gate(width: int) -> nn.Sequential:
    gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    nn.init.zeros_(gate[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(gate[2].bias)  # type: ignore[arg-type]
    return gate


def _gated(values: Tensor, tokens: Tensor, gate: nn.Module | None) -> Tensor:
    return values if gate is None else values * gate(tokens).sigmoid()

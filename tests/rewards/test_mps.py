"""MPS against its formula, written with einsum and loops, and its published file: a pickled module.

The cross-attention was also held against the published source: the same 48 names and shapes, outputs to 2e-6 of theirs.
"""

import math

import pytest
import torch
from reward_toys import PICTURES, PROMPTS, SIZES, smooth, to_tensor
from tiny_checkpoints import MPS_SIZES
from torch.nn.functional import normalize

from rewards import RewardError
from rewards._unpickle import read_module
from rewards.mps import MPS, MPSConfig

DIM, LAYERS, HEADS = MPS_SIZES


def layer_norm(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def swiglu(x):
    half = x.shape[-1] // 2
    return x[..., :half] * x[..., half:] * x[..., half:].sigmoid()


def turned(x):
    """Rotary positions as complex numbers: x_k + i x_{k + d/2} times e^{i p w_k}."""
    length, dim = x.shape[-2:]
    k = torch.arange(dim // 2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * k / dim)
    z = torch.complex(x[..., : dim // 2].double(), x[..., dim // 2 :].double()) * torch.polar(
        torch.ones(()).double(), angles
    )
    return torch.cat([z.real, z.imag], -1).to(x.dtype)


def attend(q, k, v, mask=None):
    """One head: (B, n, d), (B, m, d)."""
    logits = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bnm,bmd->bnd", (logits if mask is None else logits + mask).softmax(-1), v)


def cross(state, x, context, mask):
    """The published network, from its tensors alone."""
    for n in range(LAYERS):
        w = {k.removeprefix(f"layers.{n}.0.fn."): v for k, v in state.items() if k.startswith(f"layers.{n}.0.")}
        y = layer_norm(x, w["norm.weight"])
        q, (k, v) = y @ w["to_q.weight"].T, (context @ w["to_kv.weight"].T).chunk(2, -1)
        out = torch.cat([attend(part, k, v, mask) for part in q.chunk(HEADS, -1)], -1) @ w["to_out.weight"].T
        x = x + out + swiglu(y @ w["ff.0.weight"].T) @ w["ff.2.weight"].T
        w = {k.removeprefix(f"layers.{n}.1.fn."): v for k, v in state.items() if k.startswith(f"layers.{n}.1.")}
        fused = layer_norm(x, w["norm.weight"]) @ w["fused_attn_ff_proj.weight"].T
        q, k, v, inner = fused.split([HEADS * 64, 64, 64, 8 * DIM], -1)
        out = torch.cat([attend(turned(part), turned(k), v) for part in q.chunk(HEADS, -1)], -1)
        x = x + out @ w["attn_out.weight"].T + swiglu(inner) @ w["ff_out.1.weight"].T
    return x


@pytest.fixture
def published(tiny_mps):
    return tiny_mps


def reward_of(published, tiny_clip, **settings) -> MPS:
    return MPS(MPSConfig(weights=str(published[0]), model=str(tiny_clip), layers=LAYERS, heads=HEADS, **settings))


@torch.no_grad()
def expected(network, tiny_clip, pictures, criteria, threshold):
    """Image by image, as its authors evaluate."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    clip = network.model
    words = AutoTokenizer.from_pretrained(tiny_clip)

    def text(sentence):
        ids = words(sentence, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
        out = clip.text_model(input_ids=ids)
        return clip.text_projection(out.last_hidden_state), clip.text_projection(out.pooler_output)

    condition, _ = text(criteria)
    pixel_values = CLIPImageProcessorPil.from_pretrained(tiny_clip)(pictures, return_tensors="pt")["pixel_values"]
    scores = []
    for pixels, prompt in zip(pixel_values, PROMPTS, strict=True):
        tokens, summary = text(prompt)
        similar = torch.einsum("bid,bjd->bji", tokens, condition).max(1, keepdim=True).values
        mask = torch.where(similar / similar.max() > threshold, 0.0, float("-inf"))
        image = clip.visual_projection(clip.vision_model(pixels[None]).last_hidden_state)
        seen = cross(network.cross_model.state_dict(), image, tokens, mask)[:, 0]
        scores.append(clip.logit_scale.exp() * (normalize(summary, dim=-1) * normalize(seen, dim=-1)).sum())
    return torch.stack(scores)


@pytest.mark.parametrize("threshold", [0.3, 0.01, 0.9])
def test_scores_are_the_formula(threshold, published, tiny_clip):
    reward = reward_of(published, tiny_clip, threshold=threshold, criteria="red, green")
    for size in SIZES if threshold == 0.3 else ((48, 60),):
        pictures = [picture(*size) for picture in PICTURES]
        wanted = expected(published[1], tiny_clip, pictures, "red, green", threshold)
        scale = float(wanted.abs().max())
        assert wanted.std() > 1e-3 * scale
        torch.testing.assert_close(reward(to_tensor(*pictures), PROMPTS), wanted, rtol=0, atol=1e-5 * max(scale, 1))


def test_the_threshold_hides_some_tokens_and_not_all(published, tiny_clip):
    reward = reward_of(published, tiny_clip, threshold=0.9)
    mask = reward._mask(reward._cache(PROMPTS, torch.device("cpu"))[:, 1:])
    seen = (mask == 0).sum((1, 2))
    assert (seen >= 1).all() and (seen < 16).any()


def test_the_gradient_is_that_of_finite_differences(published, tiny_clip, finite_differences):
    reward = reward_of(published, tiny_clip).double()
    reward.dtype = torch.float64
    finite_differences(reward, PROMPTS[:1], smooth(40, 40))


def test_a_pickled_module_is_read_and_nothing_in_it_is_run(published, tmp_path):
    wanted = published[1].state_dict()
    found = read_module(published[0])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"weight": torch.ones(2), "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(RewardError, match="holds no weights"):
        read_module(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_what_is_said_when_there_are_no_weights(tmp_path, tiny_clip):
    with pytest.raises(RewardError, match=r"on no hub: get MPS_overall_checkpoint\.pth"):
        MPS(MPSConfig())
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RewardError, match=r"torn\.pth cannot be read as weights"):
        MPS(MPSConfig(weights=str(tmp_path / "torn.pth"), model=str(tiny_clip)))

"""Where the flow's layers look."""

import pytest
import torch
import torch.nn.functional as F

from scripts.pretrain import attention


def test_cells_touch_their_neighbours():
    touching = attention.neighbours()
    assert touching.eq(touching.T).all() and touching.diag().eq(0).all()
    assert sorted(set(touching.sum(-1).tolist())) == [3, 5, 8]
    assert touching[0].nonzero().flatten().tolist() == [1, 8, 9]


def test_an_even_look_gives_neighbours_their_even_share_and_equal_tokens_count():
    query = torch.zeros(2, 3, 70, 4)
    mask = torch.zeros(1, 1, 1, 70)
    mask[..., -1] = torch.tensor(31.0).log()
    with attention.Looking() as seen:
        F.scaled_dot_product_attention(query, torch.randn(2, 3, 70, 4), query, attn_mask=mask)
    assert seen.even == pytest.approx([(36 * 8 + 24 * 5 + 4 * 3) / 64 / 100])
    torch.testing.assert_close(seen.shares[0], torch.full((3,), seen.even[0]))


def test_a_head_that_looks_at_neighbours_alone_has_all_its_attention_there():
    touching = attention.neighbours()
    query = torch.zeros(1, 2, 66, 64)
    key = torch.zeros(1, 2, 66, 64)
    query[0, 1, :64] = 1e3 * touching
    key[0, :, :64] = torch.eye(64)
    with attention.Looking() as seen:
        out = F.scaled_dot_product_attention(query, key, key)
    assert seen.shares[0][1] == pytest.approx(1) and seen.shares[0][0] < 0.11
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, key))

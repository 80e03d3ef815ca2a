import pytest
import torch

from samplers import Rng, noise


def test_a_rows_noise_depends_on_seed_stream_and_index_only():
    whole = noise(0, "x_T", range(8), (4, 3))
    assert torch.equal(noise(0, "x_T", [5, 2], (4, 3)), whole[[5, 2]])
    for seed, stream, indices in [(1, "x_T", range(8)), (0, "step/0", range(8)), (0, "x_T", range(8, 16))]:
        other = noise(seed, stream, indices, (4, 3))
        assert not any(torch.equal(ours, theirs) for ours, theirs in zip(whole, other, strict=True))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = noise(0, "x_T", [3], (5,))
    state = torch.get_rng_state()
    assert torch.equal(noise(0, "x_T", [3], (5,)), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_standard_normal_and_rows_are_independent():
    drawn = noise(0, "x_T", range(2000), (50,)).double()
    assert abs(float(drawn.mean())) < 4 / 100_000**0.5
    assert float(drawn.var()) == pytest.approx(1, abs=4 * (2 / 100_000) ** 0.5)
    neighbours = (drawn[1:] * drawn[:-1]).mean()
    assert abs(float(neighbours)) < 4 / 100_000**0.5


def test_rng_follows_the_latents_in_shape_and_dtype():
    like = torch.empty(2, 4, 3, dtype=torch.float64)
    drawn = Rng(0, [7, 8]).normal("x_T", like)
    assert drawn.dtype == torch.float64 and drawn.shape == like.shape
    assert torch.equal(drawn.float(), noise(0, "x_T", [7, 8], (4, 3)))


def test_the_update_does_not_change_a_samples_noise_but_changes_shared_draws():
    like = torch.empty(1, 4)
    assert torch.equal(Rng(0, [3], step=0).normal("x_T", like), Rng(0, [3], step=9).normal("x_T", like))
    draw = [torch.rand(2, generator=Rng(0, [3], step=step).shared("m")) for step in (0, 9)]
    assert not torch.equal(*draw)


def test_an_empty_batch_has_empty_noise():
    assert noise(0, "x_T", [], (4, 3)).shape == (0, 4, 3)


def test_indices_must_match_the_batch():
    with pytest.raises(ValueError, match="2 sample indices for a batch of 3"):
        Rng(0, [1, 2]).normal("x_T", torch.empty(3, 4))

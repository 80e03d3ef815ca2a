"""The regularisers of noise optimisation against their closed forms."""

import math

import pytest
import torch

from align.objectives._priors import radial, structure


def of_length(length, shape=(4, 64, 64), dtype=torch.float64):
    x = torch.randn(1, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x / x.norm() * length


def test_the_published_value():
    """d = 16384, |x| = 128, weight 0.01: the loss term is -713."""
    x = of_length(128.0)
    expected = 16383 * math.log(128) - 128**2 / 2
    assert float(radial(x)) == pytest.approx(expected, rel=1e-12)
    assert round(-0.01 * expected) == -713


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_the_radial_gradient_is_along_x_and_zero_at_sqrt_d_minus_one(factor):
    x = of_length(factor * math.sqrt(16383)).requires_grad_()
    (gradient,) = torch.autograd.grad(radial(x).sum(), x)
    along = 16383 / x.detach().norm() ** 2 - 1
    torch.testing.assert_close(gradient, along * x.detach(), rtol=1e-9, atol=1e-12)
    assert (float(gradient.norm()) < 1e-9) == (factor == 1.0)


def test_rows_are_scored_by_themselves_and_half_precision_does_not_overflow():
    x = torch.cat([of_length(20.0), of_length(200.0)])
    assert torch.equal(radial(x), torch.cat([radial(x[:1]), radial(x[1:])]))
    half = torch.full((1, 4, 512, 512), 1.0, dtype=torch.float16)  # |x|^2 is 1048576, above fp16's 65504
    assert float(radial(half)) == pytest.approx((2**20 - 1) * math.log(2**10) - 2**19, rel=1e-6)


def test_structure_is_zero_for_noise_and_by_hand_elsewhere():
    noise = torch.randn(8, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    of_noise = structure(noise, torch.Generator().manual_seed(0))
    assert float(of_noise.max()) <= 0 and float(of_noise.median()) > -0.05  # one row in 8 is unlikely by its length
    shifted = torch.full(
        (1, 4, 16, 16), 0.5, dtype=torch.float64
    )  # every arrangement is the same: z_i = (.5, .5, .5, .5)
    m, k = 256, 4
    # mean: |M1|^2 = k/4; covariance: 0.25 ones - I has the eigenvalues 0 and -1 three times, so M2 = 1
    log_p1 = math.log(2) - m * (k * 0.25) / (2 * k)
    log_p2 = math.log(2) - m * (math.sqrt(2) - 1 - math.sqrt(k / m)) ** 2 / 2
    assert float(structure(shifted, torch.Generator().manual_seed(0))) == pytest.approx(log_p1 + log_p2, rel=1e-12)


def test_structure_sees_neighbours_that_agree_where_the_length_says_nothing():
    noise = torch.randn(1, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    blocks = noise[:, :, :, ::4].repeat_interleave(4, 3)  # four equal neighbours: the same length on average
    blocks = blocks / blocks.norm() * math.sqrt(1023)
    typical = noise / noise.norm() * math.sqrt(1023)
    assert float(radial(blocks)) == pytest.approx(float(radial(typical)))
    natural = [float(structure(x, num_permutations=0)) for x in (typical, blocks)]
    assert natural[0] > -0.1 and natural[1] < -10
    x = blocks.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(structure(x, num_permutations=0).sum(), x)
    assert bool(gradient.isfinite().all())
    assert float(structure(blocks + 1e-3 * gradient, num_permutations=0)) > natural[1]


def test_permutations_come_from_the_generator():
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.5
    first, again, other = (structure(x, torch.Generator().manual_seed(s), num_permutations=3) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)

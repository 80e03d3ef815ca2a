import pytest
import torch

from samplers import FlowSchedule, Prediction, row, split, target


@pytest.mark.parametrize("kind", list(Prediction))
@pytest.mark.parametrize("shape", [(), (3,)])
def test_split_inverts_the_row(schedule, kind, shape):
    x0, eps = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    t = torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05
    alpha, sigma = schedule(t)
    a, b = row(alpha, sigma, kind)
    over_rows = [c.reshape(-1, 1, 1, 1) for c in (alpha, sigma, a, b)]
    x_t = over_rows[0] * x0 + over_rows[1] * eps
    out = over_rows[2] * x0 + over_rows[3] * eps
    got_x0, got_eps = split(out, x_t, alpha, sigma, kind)
    torch.testing.assert_close(got_x0, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_eps, eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target(x0, eps, alpha, sigma, kind), out, rtol=1e-12, atol=1e-12)


def test_rows_are_the_published_ones():
    alpha, sigma = torch.tensor(0.8), torch.tensor(0.6)
    assert {kind: tuple(round(float(c), 4) for c in row(alpha, sigma, kind)) for kind in Prediction} == {
        Prediction.EPSILON: (0, 1),
        Prediction.SAMPLE: (1, 0),
        Prediction.V: (-0.6, 0.8),
        Prediction.FLOW: (-1, 1),
    }


@pytest.mark.parametrize("kind", [Prediction.V, Prediction.FLOW, Prediction.SAMPLE])
def test_pure_noise_is_no_singularity_for_kinds_that_say_something_there(kind):
    x_t, out = torch.randn(2, 2, 3, dtype=torch.float64)
    x0, eps = split(out, x_t, *FlowSchedule()(torch.tensor(1.0)), kind)
    assert x0.isfinite().all()
    torch.testing.assert_close(eps, x_t, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", list(Prediction))
def test_low_precision_latents_stay_in_their_dtype(schedule, kind):
    out, x_t = torch.randn(2, 2, 3, dtype=torch.bfloat16)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.rand(2)):
        assert {part.dtype for part in split(out, x_t, *schedule(t), kind)} == {torch.bfloat16}

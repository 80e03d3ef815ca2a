import pytest
import torch

from samplers import FlowSchedule, GaussianDenoiser, Prediction, TensorCond, add_noise, cfg, constant, denoise

X, COND = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
UNCOND = torch.randn(1, 2, dtype=torch.float64)
T = torch.tensor(0.4, dtype=torch.float64)


class Counting:
    schedule, kind = FlowSchedule(), Prediction.FLOW

    def __init__(self):
        self.rows = []

    def __call__(self, x_t, t, cond):
        self.rows.append(len(x_t))
        assert len(cond) == len(x_t) and (t.ndim == 0 or len(t) == len(x_t))
        scale = t if t.ndim == 0 else t.reshape(-1, 1)
        return scale * x_t + torch.sin(cond.tensors["mean"])


def out(scale, t=T, **options):
    return cfg(Counting(), constant(UNCOND), scale, **options)(X, t, constant(COND))


def test_scale_one_is_cond_zero_is_uncond_and_between_it_is_affine():
    conditional = Counting()(X, T, constant(COND))
    unconditional = Counting()(X, T, constant(UNCOND.expand(3, 2)))
    torch.testing.assert_close(out(1.0), conditional, rtol=0, atol=0)
    torch.testing.assert_close(out(0.0), unconditional, rtol=1e-14, atol=0)
    for scale in (0.5, 3.0, 7.5):
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(out(scale), expected, rtol=1e-12, atol=1e-14)


def test_guidance_is_one_batched_call_and_none_at_scale_one():
    network = Counting()
    cfg(network, constant(UNCOND), 5.0)(X, T, constant(COND))
    assert network.rows == [6]
    assert cfg(network, constant(UNCOND), 1.0) is network


def test_an_uncond_row_per_sample_is_taken_as_it_is():
    rows = torch.randn(3, 2, dtype=torch.float64)
    guided = cfg(Counting(), constant(rows), 2.0)(X, T, constant(COND))
    expected = T * X + torch.sin(rows) + 2 * (torch.sin(COND) - torch.sin(rows))
    torch.testing.assert_close(guided, expected, rtol=1e-12, atol=1e-14)


def test_outside_its_interval_guidance_costs_nothing():
    network = Counting()
    guided = cfg(network, constant(UNCOND), 5.0, interval=(0.2, 0.7))
    for t, rows in [(0.1, 3), (0.2, 6), (0.7, 6), (0.8, 3)]:
        network.rows.clear()
        value = guided(X, torch.tensor(t, dtype=torch.float64), constant(COND))
        assert network.rows == [rows]
        if rows == 3:
            torch.testing.assert_close(value, t * X + torch.sin(COND), rtol=1e-12, atol=1e-14)


def test_rows_at_their_own_times_are_guided_each_by_the_interval():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = out(5.0, t, interval=(0.2, 0.7))
    alone = torch.stack([out(5.0, time, interval=(0.2, 0.7))[i] for i, time in enumerate(t)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_guidance_keeps_the_denoisers_conventions(vp):
    guided = cfg(GaussianDenoiser(vp, Prediction.EPSILON), constant(UNCOND), 3.0)
    assert guided.schedule is vp and guided.kind is Prediction.EPSILON


@pytest.mark.parametrize("kind", list(Prediction))
def test_the_gaussian_denoiser_is_the_conditional_mean(schedule, kind):
    """Regression of x0 on x_t over samples of the joint distribution has its slope and its intercept."""
    rows, mean, std = 200_000, 0.4, 0.7
    x0, eps = mean + std * torch.randn(rows, 1).double(), torch.randn(rows, 1).double()
    x_t = add_noise(schedule, x0, eps, T)
    slope = ((x_t - x_t.mean()) * (x0 - x0.mean())).mean() / x_t.var()
    data = GaussianDenoiser(schedule, kind, std)
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found, noise = denoise(data, probe, T, constant(torch.full((2, 1), mean, dtype=torch.float64)))
    assert float(found[1] - found[0]) == pytest.approx(float(slope), abs=0.01)
    assert float(found[0]) == pytest.approx(float(x0.mean() - slope * x_t.mean()), abs=0.01)
    alpha, sigma = schedule(T)
    torch.testing.assert_close(alpha * found + sigma * noise, probe, rtol=1e-10, atol=1e-10)


def test_cond_rows():
    cond = TensorCond({"a": torch.arange(6).reshape(3, 2), "b": torch.arange(3)})
    assert len(cond) == 3
    assert cond.repeat(2).tensors["b"].tolist() == [0, 0, 1, 1, 2, 2]
    assert cond.cat(cond[1:]).tensors["b"].tolist() == [0, 1, 2, 1, 2]
    assert cond[[2, 0]].tensors["a"].tolist() == [[4, 5], [0, 1]]
    assert len(cond[1]) == 1 and cond[1].tensors["b"].tolist() == [1] and cond[-1].tensors["b"].tolist() == [2]
    assert cond.to(torch.float64).tensors["a"].dtype == torch.float64


def test_cond_tensors_must_agree_on_their_rows():
    with pytest.raises(ValueError, match="same number of rows"):
        TensorCond({"a": torch.zeros(3), "b": torch.zeros(2)})


@pytest.mark.parametrize(("grad", "gain"), [("both", (1 - 3.0, 3.0)), ("cond", (0.0, 3.0)), ("none", (0.0, 1.0))])
def test_which_branch_of_a_guided_output_carries_gradient(vp, grad, gain):
    """out = out_u + 3 (out_c - out_u): the factors with which the outputs of the two branches reach it."""
    theta = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)  # of the unconditional and the conditional row

    class Two:
        schedule, kind = vp, Prediction.EPSILON

        def __call__(self, x_t, t, cond):
            return cond.tensors["mean"] + theta[cond.tensors["mean"][:, 0].long()]

    zero, one = (constant(torch.full((1, 1), v, dtype=torch.float64)) for v in (0.0, 1.0))
    out = cfg(Two(), zero, 3.0, grad=grad)(torch.zeros(1, 1, dtype=torch.float64), T, one)
    assert out.tolist() == [[3.0]]
    assert torch.autograd.grad(out.sum(), theta)[0].flatten().tolist() == pytest.approx(gain)

"""What of a guided output carries gradient, where more is done to it than guidance: the Jacobian by each branch."""

import pytest
import torch

from samplers import FlowSchedule, Guidance, Prediction, TensorCond, guide

W = 4.0
X, T = torch.zeros(1, 6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
COND, UNCOND = (TensorCond({"c": torch.full((1, 1), k)}) for k in (1, 0))
OUT = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def keep_norm(out, out_c):
    return out * (out_c.norm(dim=1) / out.norm(dim=1))[:, None]


CHANGED = {
    "plain": ({}, None),
    "zero_star": ({"zero_star": True}, None),
    "rescale": ({"rescale": 0.7}, None),
    "family": ({}, keep_norm),
    "all": ({"zero_star": True, "rescale": 0.7}, keep_norm),
}


def guided(grad, settings, rescale, outputs):
    """The guided output of a network that says outputs[0] without the prompt and outputs[1] with it."""

    class Two:
        schedule, kind = FlowSchedule(), Prediction.FLOW

        def __call__(self, x_t, t, cond):
            return outputs[cond.tensors["c"][:, 0].long()]

    return guide(Two(), UNCOND, Guidance(W, **settings), rescale=rescale, grad=grad)


def jacobians(grad, settings, rescale):
    """(the output, d out/d out_u, d out/d out_c)."""

    def call(outputs):
        return guided(grad, settings, rescale, outputs)(X, T, COND)[0]

    found = torch.autograd.functional.jacobian(call, OUT)
    return call(OUT), found[:, 0], found[:, 1]


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize(("grad", "gain"), [("cond", W), ("none", 1.0)])
def test_the_conditional_output_alone_and_by_the_factor_that_is_said(case, grad, gain):
    value, by_u, by_c = jacobians(grad, *CHANGED[case])
    torch.testing.assert_close(by_c, gain * torch.eye(6, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert not by_u.any()
    assert torch.equal(value, jacobians("both", *CHANGED[case])[0])


@pytest.mark.parametrize("case", CHANGED)
def test_both_is_the_whole_gradient(case):
    """Against differences of the output's own values, whose factors are of single precision."""
    _, by_u, by_c = jacobians("both", *CHANGED[case])
    for place, found in enumerate((by_u, by_c)):
        for k in range(6):
            step = torch.zeros_like(OUT)
            step[place, k] = 1e-3
            high, low = (guided("both", *CHANGED[case], OUT + sign * step)(X, T, COND)[0] for sign in (1, -1))
            torch.testing.assert_close(found[:, k], (high - low) / 2e-3, rtol=1e-3, atol=1e-3)


def test_a_call_whose_difference_is_an_earlier_ones_carries_that_of_the_conditional_output():
    outputs = OUT.clone().requires_grad_()
    settings = {"rescale": 0.7, "skip": "refresh", "every": 2, "reuse": "delta"}
    begun = guided("cond", settings, None, outputs).begin(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    begun.at(0)(X, T, COND)
    (found,) = torch.autograd.grad(begun.at(1)(X, T, COND).sum(), outputs)
    assert found[0].tolist() == [0.0] * 6 and found[1].tolist() == pytest.approx([1.0] * 6)

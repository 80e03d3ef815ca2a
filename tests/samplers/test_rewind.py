"""The leapfrog, and the chain that is run backwards: order, exact inverse, gradients, and what is kept."""

import pytest
import torch
from test_memory import LATENT_BYTES, Network, Storages

from samplers import (
    GaussianDenoiser,
    GradPolicy,
    Grid,
    Leapfrog,
    Prediction,
    TensorCond,
    cfg,
    constant,
    ddim,
    full,
    grids,
    last,
    sample,
)

STD = 0.6
REVERSIBLE = GradPolicy(full().keep, reversible=True)


def even(first, end, num_steps):
    return Grid(torch.linspace(first, end, num_steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("kind", [Prediction.EPSILON, Prediction.V])
def test_the_leapfrog_is_of_order_two(schedule, kind):
    data = GaussianDenoiser(schedule, kind, std=STD)
    x_T, cond = torch.randn(2, 3, dtype=torch.float64), constant(torch.full((2, 3), 0.3, dtype=torch.float64))
    alpha, sigma = schedule(torch.tensor([0.9, 0.2], dtype=torch.float64))
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    exact = alpha[1] * 0.3 + spread[1] / spread[0] * (x_T - alpha[0] * 0.3)
    errors = [(sample(data, x_T, even(0.9, 0.2, n), cond, step=Leapfrog).x0 - exact).abs().max() for n in (20, 40, 80)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2) and errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_one_step_to_clean_data_is_ddims(schedule):
    data = GaussianDenoiser(schedule, Prediction.V, std=STD)
    x_T, cond = torch.randn(2, 3, dtype=torch.float64), constant(torch.zeros(2, 3, dtype=torch.float64))
    found = sample(data, x_T, even(0.7, 0.0, 1), cond, step=Leapfrog).x0
    torch.testing.assert_close(found, sample(data, x_T, even(0.7, 0.0, 1), cond, step=ddim).x0)


class Curved:
    """A small nonlinear network of one parameter row; counts calls that carry gradient."""

    kind = Prediction.EPSILON

    def __init__(self, schedule, dtype=torch.float64):
        self.schedule = schedule
        self.weight = torch.tensor([0.3, -0.2, 0.5], dtype=dtype, requires_grad=True)
        self.with_gradient = 0

    def __call__(self, x_t, t, cond):
        out = torch.tanh(x_t * self.weight + 0.1 * float(t)) + 0.3 * x_t.flip(1)
        self.with_gradient += out.requires_grad
        return out


def gradients(schedule, policy, *, dtype=torch.float64, moves=True, num_steps=12):
    net, row = Curved(schedule, dtype), torch.zeros(2, 1)
    x_T = torch.linspace(-1, 1, 6, dtype=dtype).view(2, 3).requires_grad_(moves)
    end = sample(net, x_T, even(0.95, 0.0, num_steps), constant(row), step=Leapfrog, grad=policy).x0
    loss = (end * torch.tensor([1.0, -2.0, 0.5], dtype=dtype)).square().sum()
    inputs = [net.weight, x_T] if moves else [net.weight]
    return end.detach(), *torch.autograd.grad(loss, inputs)


POLICIES = {
    "full": full(),
    "last 5": last(5),
    "last 1": last(1),
    "inputs detached": GradPolicy(full().keep, detach_input=True),
    "scaled": GradPolicy(full().keep, scale=[0.5 + i / 12 for i in range(12)]),
    "every other": GradPolicy(lambda n, _: [i % 2 == 1 for i in range(n)]),
}


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_the_gradient_is_the_stored_chains(schedule, name, moves):
    stored = POLICIES[name]
    found = gradients(schedule, GradPolicy(**{**vars(stored), "reversible": True}), moves=moves)
    for mine, theirs in zip(found, gradients(schedule, stored, moves=moves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_the_gradient_is_that_of_finite_differences(schedule):
    net = Curved(schedule)

    def loss(weight, x_T):
        net.weight = weight
        return sample(net, x_T, even(0.95, 0.0, 7), None, step=Leapfrog, grad=REVERSIBLE).x0.square().sum()

    x_T = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (net.weight.detach().clone().requires_grad_(), x_T), atol=1e-6)


def test_going_back_finds_every_state_again(schedule):
    """The states that the backward pass calls the network at are, in float32, those of the way there."""

    class Seen(Curved):
        there, back = (), ()
        returning = False

        def __call__(self, x_t, t, cond):
            name = "back" if self.returning else "there"
            setattr(self, name, (*getattr(self, name), x_t.detach()))
            return super().__call__(x_t, t, cond)

    net = Seen(schedule, torch.float32)
    x_T = torch.randn(4, 3)
    end = sample(net, x_T, even(0.999, 0.0, 50), None, step=Leapfrog, grad=REVERSIBLE).x0
    assert len(net.there) == 50 and net.with_gradient == 50
    net.returning = True
    end.sum().backward()
    assert len(net.back) == 50  # each call is made once more, and not twice
    for there, back in zip(net.there, net.back[::-1], strict=True):
        assert float((there - back).abs().max()) < 1e-6


def test_what_is_kept_does_not_grow_with_the_chain():
    def kept_bytes(num_steps, **how):
        network = Network()
        uncond, cond = TensorCond({"text": torch.zeros(1, 4)}), TensorCond({"text": torch.ones(2, 4)})
        x_T = torch.randn(2, 4, 16, 16)
        policy = GradPolicy(full().keep, **how)
        with Storages() as storages:
            x0 = sample(cfg(network, uncond, 5.0), x_T, grids.flow(num_steps), cond, step=Leapfrog, grad=policy).x0
            kept = storages.alive()
        assert x0.requires_grad
        return kept

    few, many = (kept_bytes(n, reversible=True) for n in (3, 12))
    assert many - few < 20 * 9  # the scalars of its grid
    assert kept_bytes(12) - kept_bytes(3) > 8 * LATENT_BYTES  # the count sees what checkpointing keeps


def test_only_the_leapfrog_and_its_last_state_are_reversible(schedule):
    x_T = torch.zeros(1, 3, dtype=torch.float64)
    for wrong in ({"step": ddim}, {"step": Leapfrog, "keep": "states"}):
        with pytest.raises(ValueError, match="a reversible chain is `Leapfrog`"):
            sample(Curved(schedule), x_T, even(0.9, 0.1, 3), None, grad=REVERSIBLE, **wrong)

"""Gradient surgery: what opposes the kept loss is taken out, however long the gradient; what does not is left alone."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from align_toys import toy_policy
from torch import nn

from align.data.prompts import PromptBatch
from align.objectives._base import Loss
from align.training.surgery import Held
from align.training.update import update
from samplers.noise import noise

ONE: object = SimpleNamespace(num_processes=1)


def parameters(seed: int, size: float) -> list[nn.Parameter]:
    """Three tensors with a gradient of this length."""
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((40,), (3, 20), (2, 2))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    length = torch.cat([p.grad.flatten() for p in made]).norm()
    for parameter in made:
        parameter.grad *= size / length
    return made


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def held(own: list[nn.Parameter], against: float) -> Held:
    """p = noise + `against` times the gradient."""
    made, generator = Held(own), torch.Generator().manual_seed(9)
    made.gradients = [0.1 * torch.randn(p.shape, generator=generator) + against * p.grad / flat_norm(own) for p in own]
    return made


def flat_norm(own: list[nn.Parameter]) -> float:
    return float(flat([p.grad for p in own]).norm())


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_an_opposed_gradient_ends_orthogonal_at_any_length(size):
    own = parameters(0, size)
    kept = held(own, -1.0)
    before = flat([p.grad for p in own])
    cosine = kept.project(ONE)
    after, p = flat([p.grad for p in own]), flat(kept.gradients)
    assert cosine < -0.5
    assert abs(float(after @ p / (after.norm() * p.norm()))) < 1e-6
    torch.testing.assert_close(after, before - (before @ p) / (p @ p) * p, rtol=1e-5, atol=1e-5 * size)


def test_an_aligned_gradient_is_left_to_the_bit():
    own = parameters(0, 1.0)
    before = [p.grad.clone() for p in own]
    assert held(own, 1.0).project(ONE) > 0.5
    assert all(torch.equal(a, p.grad) for a, p in zip(before, own, strict=True))


def test_it_is_global_and_not_a_tensor_at_a_time():
    """Opposed in one tensor, more aligned in another: nothing is to be taken out."""
    own = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    own[0].grad, own[1].grad = torch.tensor([1.0]), torch.tensor([1.0])
    kept = Held(own)
    kept.gradients = [torch.tensor([-1.0]), torch.tensor([2.0])]
    kept.project(ONE)
    assert [float(p.grad) for p in own] == [1.0, 1.0]


def test_nothing_kept_changes_nothing():
    own = parameters(0, 1.0)
    before = flat([p.grad for p in own])
    kept = Held(own)
    kept.add(torch.zeros(()))
    assert kept.project(ONE) == 0 and torch.equal(flat([p.grad for p in own]), before)


def test_the_kept_gradient_is_that_of_all_processes():
    own = parameters(0, 1.0)
    kept = held(own, -1.0)
    other = 0.1 * torch.randn(104, generator=torch.Generator().manual_seed(3))
    accelerator = SimpleNamespace(num_processes=2, reduce=lambda tensor, reduction: tensor + other)
    p = flat(kept.gradients) + other.double()
    assert float(flat([q.grad for q in own]) @ p) < 0
    kept.project(accelerator)
    after = flat([q.grad for q in own])
    assert abs(float(after @ p / (after.norm() * p.norm()))) < 1e-6
    assert abs(float(after @ flat(kept.gradients))) > 1e-3, "not to this process's own alone"


class Torn:
    """Pulls the output one way, and keeps a loss that pulls the other."""

    def __init__(self, *, kept: float = 1.0, nan: bool = False):
        self.kept, self.nan = kept, nan

    def __call__(self, policy, batch, context=None):
        out = policy.role("train")(noise(0, "x_T", batch.indices, (4,)), torch.tensor(0.5), None)
        away = (out + 1).square().mean(1) * (float("nan") if self.nan else 1.0)
        return Loss((out - 1).square().mean(1), torch.ones(len(batch)), {}, self.kept * away)


def moved(cuts, **torn):
    policy = toy_policy(0, rank=2)
    optimiser = torch.optim.SGD(policy.adapter.parameters(), lr=0.0)
    done = update(Torn(**torn), policy, policy.adapter, optimiser, cuts, Accelerator(cpu=True), seed=(0, 0))
    return done, flat([p.grad for p in policy.adapter.parameters()])


def batch(rows):
    return PromptBatch(("",) * len(rows), tuple(rows), 0)


def test_an_update_does_not_depend_on_its_cut_or_on_the_kept_losss_size():
    whole, gradient = moved([batch(range(8))])
    assert whole.outcome == "applied" and whole.metrics["kept_cosine"] < 0 and whole.metrics["kept"] > 0
    for cuts, kept in (([batch(range(3)), batch(range(3, 8))], 1.0), ([batch(range(8))], 50.0)):
        torch.testing.assert_close(moved(cuts, kept=kept)[1], gradient, rtol=1e-4, atol=1e-6)


def test_a_kept_gradient_that_is_not_finite_moves_nothing():
    done, _ = moved([batch(range(4))], nan=True)
    assert done.outcome == "not finite"

"""The pure formulas of policy gradients and their identities."""

import pytest
import torch

from align.objectives._losses import dpo, log_ratio_of_errors
from align.objectives._rl_losses import forward_terms, ppo

A = torch.tensor([1.5, -0.7, 0.0, 2.0], dtype=torch.float64)


def test_ppo_at_the_old_policy_has_the_gradient_of_the_score_function():
    """R = p/p_old with p_old = p: value -A, gradient -A grad log p, whatever the clip."""
    log_prob = torch.randn(4, dtype=torch.float64, requires_grad=True)
    loss = ppo((log_prob - log_prob.detach()).exp(), A, clip=1e-4)
    assert torch.equal(loss.detach(), -A)
    assert torch.equal(torch.autograd.grad(loss.sum(), log_prob)[0], -A)


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"), [(1.0, 1.3, False), (1.0, 0.7, True), (-1.0, 1.3, True), (-1.0, 0.7, False)]
)
def test_ppo_stops_where_the_ratio_has_gone_the_way_that_a_asks_for(advantage, ratio, moves):
    r = torch.tensor([ratio], requires_grad=True)
    (gradient,) = torch.autograd.grad(ppo(r, torch.tensor([advantage]), clip=0.2).sum(), r)
    assert bool(gradient) == moves


def velocities(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=generator)


def squared(x):
    return x.flatten(1).square().mean(1)


@pytest.mark.parametrize(("r", "b"), [(0.3, 0.1), (1.0, 1.0), (0.0, 0.5)])
def test_nfts_two_branches_are_three_terms(r, b):
    """r |v+ - u|^2 + (1 - r) |v- - u|^2 = b^2 |d|^2 + |e|^2 + 2 b (2r - 1) <d, e>."""
    v, old, u = velocities()
    terms, plus, minus = forward_terms(v, old, u), (1 - b) * old + b * v, (1 + b) * old - b * v
    torch.testing.assert_close(terms.mixed(b), squared(plus - u))
    torch.testing.assert_close(terms.mixed(-b), squared(minus - u))
    identity = b**2 * terms.moved + terms.error_old + 2 * b * (2 * r - 1) * terms.along
    torch.testing.assert_close(r * squared(plus - u) + (1 - r) * squared(minus - u), identity)
    torch.testing.assert_close(terms.error, squared(v - u))


def test_at_the_old_policy_the_three_methods_pull_alike():
    """NFT x A_max/b, AWM and DGPO (weight 1) have the gradient 2 A e there, e = v_old - u, over the dimensions."""
    _, old, u = velocities()
    v, b, a_max = old.clone().requires_grad_(), 0.3, 5.0
    terms, r = forward_terms(v, old, u), (A / a_max + 1) / 2
    nft = a_max / b * (r * terms.mixed(b) + (1 - r) * terms.mixed(-b))
    expected = 2 * A.view(4, 1, 1) * (old - u) / 10
    for loss in (nft, A * terms.error):
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), v, retain_graph=True)[0], expected)


def test_a_group_of_two_is_diffusion_dpo():
    """sigmoid(S) sum A err, S = (beta/2) sum A (err - err_ref), A = (1, -1): DPO's gradient divided by beta/2."""
    beta, ref = 40.0, torch.tensor([0.5, 0.4], dtype=torch.float64)
    errors = torch.tensor([0.47, 0.43], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    weight = (beta / 2 * (advantage * (errors - ref)).sum()).sigmoid().detach()
    (found,) = torch.autograd.grad(weight * (advantage * errors).sum(), errors)
    ratios = log_ratio_of_errors(errors, ref)
    (expected,) = torch.autograd.grad(dpo(ratios[:1], ratios[1:], beta=beta).sum(), errors)
    torch.testing.assert_close(found, expected / (beta / 2))

"""D3PO against its closed forms, on the tiny Stable Diffusion."""

import math
from dataclasses import replace

import pytest
import torch
from group_toys import SAMPLING, groups, moved
from pair_toys import gradients, policy_on

from align.data.groups import GroupsConfig
from align.errors import UserError
from align.objectives._base import Parts
from align.objectives._losses import clamped, dpo
from align.objectives.d3po import D3PO, D3POConfig
from align.sampling import SamplingConfig


@pytest.fixture
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def everything(rows):
    """The gathering of one process."""
    return rows


def objective(policy, **config) -> D3PO:
    return D3PO(D3POConfig(**config), Parts(policy.model, SAMPLING, None, 0))


def batch_of(method, policy, **settings):
    return next(iter(groups(policy, method.wanted, shared_noise=True, **settings)))


def test_the_loss_stays_within_0_683_and_0_703():
    """The argument is at most 0.1 (ln 1.1 - ln 0.9) = 0.0201."""
    low, high = clamped(torch.tensor([-9.0, 9.0], dtype=torch.float64), D3POConfig().clamp)
    assert 0.1 * float(high - low) == pytest.approx(0.0201, abs=5e-5)
    ends = [float(dpo(w[None], loser[None], beta=D3POConfig().beta)) for w, loser in ((high, low), (low, high))]
    assert ends == pytest.approx([0.683, 0.703], abs=5e-4)


def test_the_range_holds_for_a_policy_that_has_moved(policy):
    method = objective(policy)
    batch = batch_of(method, policy)
    moved(policy, 0.05)
    loss = method(policy, batch, method.before_update(policy, [batch], everything))
    kept = loss.per_sample[loss.weight > 0]
    assert bool((kept >= 0.683).all() and (kept <= 0.7033).all()) and float((kept - math.log(2)).abs().max()) > 1e-4
    assert 0 < float(loss.metrics["clamped"].mean())


def test_at_the_reference_the_gradient_is_half_beta_times_that_of_the_log_ratio(tiny_sd_factory):
    """-(beta/2) grad(log p_w - log p_l), mean over the pairs and their steps."""
    policy = policy_on(tiny_sd_factory(), b_scale=0)
    method = objective(policy)
    batch = batch_of(method, policy, group_size=2, batch_size=2, num_prompts=1)
    context = method.before_update(policy, [batch], everything)
    loss = method(policy, batch, context)
    torch.testing.assert_close(loss.per_sample, torch.full((len(batch),), math.log(2)), rtol=1e-6, atol=0)
    parameters = policy.adapter.parameters()
    total = (loss.weight * loss.per_sample).sum() / loss.weight.sum()
    found = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])
    steps = len(batch) // 2
    w = int(batch.advantage[::steps].argmax())
    log_p = method._log_ratio(policy, batch).unflatten(0, (2, steps))
    margin = (log_p[w] - log_p[1 - w]).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-0.05 * margin, parameters)])
    assert expected.norm() > 1e-8
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_groups_pairs_are_all_pairs(policy):
    """Value and gradient are those of every pair of a group at every step, written out."""
    method = objective(policy, beta=30.0, clamp=None)
    batch = batch_of(method, policy)
    moved(policy)
    loss = method(policy, batch, method.before_update(policy, [batch[:5], batch[5:]], everything))
    ratio, gains = method._log_ratio(policy, batch), batch.advantage
    terms = []
    for a in range(len(batch)):
        for b in range(len(batch)):
            same = batch.groups[a] == batch.groups[b] and batch.slot[a] == batch.slot[b]
            if same and gains[a] > gains[b]:
                terms.append(dpo(ratio[a], ratio[b], beta=30.0))
    assert float(loss.weight.sum()) == len(terms) > 6
    total = (loss.weight * loss.per_sample).sum() / loss.weight.sum()
    torch.testing.assert_close(total, torch.stack(terms).mean(), rtol=1e-4, atol=1e-6)
    parameters = policy.adapter.parameters()
    first, second = (
        torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)])
        for x in (total, torch.stack(terms).mean())
    )
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * float(second.abs().max()))
    assert gradients(policy, loss).norm() > 0


def test_images_that_are_rewarded_alike_are_no_pairs(policy):
    method = objective(policy)
    rows = torch.tensor([[0, 0, 1, 0.5, 0.1], [0, 0, 2, 0.5, 0.0], [0, 0, 3, -1.0, 0.0]], dtype=torch.float64)
    said = method._compared(rows)
    assert [said[i, 0].pairs for i in (1, 2, 3)] == [1, 1, 2]
    assert said[3, 0].slope > 0 > said[1, 0].slope and said[1, 0].right == 1 and said[2, 0].right == 0.5


def test_rows_without_a_pair_have_no_weight_and_no_accuracy(policy):
    method = objective(policy)
    batch = batch_of(method, policy)
    none = replace(batch, advantages=torch.zeros_like(batch.advantages))
    loss = method(policy, none, method.before_update(policy, [none], everything))
    assert not loss.weight.any() and len(loss.metrics["accuracy"]) == 0
    assert not gradients(policy, loss).any()
    some = method(policy, batch, method.before_update(policy, [batch], everything))
    assert len(some.metrics["accuracy"]) == int((some.weight > 0).sum()) > 0


def test_another_network_than_the_one_that_drew_is_noticed(policy):
    method = objective(policy)
    batch = batch_of(method, policy)
    method.before_update(moved(policy), [batch], everything)
    with pytest.raises(UserError, match="do not see the same network"):
        method.after_update(everything)


def test_what_cannot_work_is_refused():
    data = GroupsConfig(prompts=["a"], group_size=1, train_fraction=0.5)
    found = dict(D3POConfig().conflicts({"data": data, "sampling": SamplingConfig(num_steps=4)}))
    assert found.keys() == {"data.group_size", "data.train_fraction", "sampling.noise_law"}

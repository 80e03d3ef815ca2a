"""Inversion-DPO on the tiny Stable Diffusion: what it compares at the reference, the subset of steps, the cache."""

import json
import math
from itertools import combinations, islice
from types import SimpleNamespace

import pytest
import torch
from pair_toys import gradients, picture, policy_on, prepared, write_pairs

from align.data.preferences import Pairs
from align.models._base import Posterior
from align.objectives._base import Parts
from align.objectives._inverted import InversionConfig, trajectories
from align.objectives.inversion_dpo import InversionDPO, InversionDPOConfig
from samplers import (
    FlowSchedule,
    GaussianDenoiser,
    Prediction,
    add_noise,
    cfg,
    constant,
    ddim,
    denoise,
    grids,
    invert,
    split,
)

N = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 4)


@pytest.fixture
def fresh(tiny_sd_factory):
    return policy_on(tiny_sd_factory(), b_scale=0)


@pytest.fixture
def moved(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def objective(policy, *, guidance=2.0, iterations=0, **config):
    inversion = {"num_steps": N, "guidance_scale": guidance, "iterations": iterations}
    return InversionDPO(InversionDPOConfig(inversion=inversion, **config), Parts(policy.model, None, None, 3))


def batch_of(policy, folder):
    return next(iter(prepared(policy, folder, batch_size=3)))


@pytest.mark.parametrize("compare", ["anchored", "residual", "published"])
def test_at_the_reference_only_the_published_form_has_no_gradient(fresh, folder, compare):
    loss = objective(fresh, compare=compare, num_train_steps=N)(fresh, batch_of(fresh, folder))
    assert torch.equal(loss.per_sample, torch.full((3,), math.log(2)))
    norm = gradients(fresh, loss).norm()
    assert norm == 0 if compare == "published" else norm > 1e-3


def test_an_image_in_several_pairs_is_inverted_once_and_what_it_takes_is_said(fresh, tmp_path):
    """Pairs of one prompt's images share them; the same image for another prompt has another path."""
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    records = [("a", 0, 1), ("a", 0, 2), ("a", 2, 1), ("b", 0, 1)]
    lines = [
        {"prompt": prompt, "winner": f"{first}.png", "loser": f"{second}.png"} for prompt, first, second in records
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ours, source = objective(fresh), prepared(fresh, tmp_path, batch_size=1)
    paths, calls = {}, []
    for batch in islice(source, 4):
        before = fresh.calls.forward
        _, states = trajectories(ours.config.inversion, fresh, batch, batch.load())
        calls.append((fresh.calls.forward - before) // (2 * N))
        prompt, *images = records[batch.rows[0]]
        for image, path in zip(images, states.unbind(1), strict=True):
            assert torch.equal(paths.setdefault((prompt, image), path), path)
    assert len(paths) == sum(calls) == 5
    assert not torch.equal(paths["a", 0], paths["b", 0])
    size = paths["a", 0].nbytes / 1024**2
    assert ours.notes == [f"inversions: {size:.3g} MiB of disk for each image of the pairs"]


class Toy:
    """A policy on exact Gaussian denoisers; theta is added to the policy's predicted x0."""

    model = SimpleNamespace(grids=lambda num_steps, *_: grids.flow(num_steps), latent_shape=lambda: (4, 8, 8))

    def __init__(self, theta, std=0.7):
        self.roles = {
            "train": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std, theta),
            "reference": GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std),
        }

    def role(self, name):
        return self.roles[name]


class ToyBatch:
    """Three pairs of latents (2,), of which nothing is kept on disk."""

    step, indices, prompts = 0, range(3), ("",) * 3

    def __len__(self):
        return 3

    def store(self, name, settings):
        return None

    def load(self):
        both = [torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
        cond = constant(torch.full((3, 2), 0.4, dtype=torch.float64))
        return Pairs(*(Posterior(x, x) for x in both), cond, cond[:1], lambda c: (c, c))


def test_the_residual_form_has_none_either_where_the_inversion_is_exact_and_unguided():
    norms = {}
    for compare in ("residual", "anchored"):
        for iterations in (0, 200):
            theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
            inversion = {"num_steps": 8, "iterations": iterations}
            config = InversionDPOConfig(compare=compare, inversion=inversion, num_train_steps=8)
            loss = InversionDPO(config, Parts(Toy.model, None, None, 0))(Toy(theta), ToyBatch())
            norms[compare, iterations] = float(torch.autograd.grad(loss.per_sample.mean(), theta)[0].norm())
    assert norms["residual", 200] < 1e-6 * norms["residual", 0]
    assert norms["anchored", 200] > 0.1 * norms["anchored", 0]


def test_an_identical_pair_gives_log_2_and_no_gradient(moved, folder, tmp_path):
    same = batch_of(moved, write_pairs(tmp_path, 3, identical=True))
    for compare in ("anchored", "residual", "published"):
        method = objective(moved, compare=compare, beta=100.0, guard=True, prompt_dropout=0.5)
        loss = method(moved, same)
        torch.testing.assert_close(loss.per_sample, torch.full((3,), math.log(2)), rtol=1e-5, atol=0)
        assert gradients(moved, loss).norm() < 1e-4 * gradients(moved, method(moved, batch_of(moved, folder))).norm()


def test_the_states_are_the_references_guided_inversion(moved, folder):
    batch = batch_of(moved, folder)
    pairs = batch.load()
    config = InversionConfig(num_steps=N, guidance_scale=2.0, iterations=1)
    times, states = trajectories(config, moved, batch, pairs)
    x0 = torch.cat([pairs.winner.mean, pairs.loser.mean])
    guided = cfg(moved.role("reference"), pairs.uncond, 2.0)
    path = invert(
        guided, x0, moved.model.grids(N, x0.shape[1:], "ddim", None), pairs.cond.cat(pairs.cond), iterations=1
    )
    assert torch.equal(times, path.times) and bool((times.diff() > 0).all())
    torch.testing.assert_close(states, torch.stack(path.states))
    assert (states[-1] - states[0]).abs().max() > 0.1


def test_the_family_has_its_way_with_the_guided_output(moved, folder):
    """As Qwen-Image's, which keeps the norm of the conditional one: here it takes that output itself."""
    batch = batch_of(moved, folder)
    plain = trajectories(InversionConfig(num_steps=N), moved, batch, batch.load())[1]
    moved.model.rescale = lambda guided, conditional: conditional
    batch = batch_of(moved, folder)
    found = trajectories(InversionConfig(num_steps=N, guidance_scale=3.0), moved, batch, batch.load())[1]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_targets_put_x_t_back_where_it_came_from(moved, folder):
    """anchored: alpha x_0 + sigma eps = x_t. residual: the DDIM step with its eps lands on the neighbour exactly."""
    from align.objectives.inversion_dpo import _goal

    batch = batch_of(moved, folder)
    times, states = trajectories(InversionConfig(num_steps=N), moved, batch, batch.load())
    role, i = moved.role("reference"), 3
    t, s = times[i].expand(6), times[i - 1].expand(6)
    for anchored in (True, False):
        goal = _goal(role, states[i], states[i - 1], states[0], t, s, anchored=anchored)
        x0, eps = split(goal, states[i], *role.schedule(t), role.kind)
        torch.testing.assert_close(add_noise(role.schedule, x0, eps, t), states[i], rtol=1e-4, atol=1e-4)
        landed = ddim(x0, eps, *role.schedule(t), *role.schedule(s)).mean
        if anchored:
            torch.testing.assert_close(x0, states[0], rtol=1e-3, atol=1e-4)
        else:
            torch.testing.assert_close(landed, states[i - 1], rtol=1e-4, atol=1e-4)


def test_the_published_quantity(moved, folder):
    """-1/2 mean_i |eps - eps_ref|^2/(2 alpha^2), and the released code's opposite sign."""
    batch = batch_of(moved, folder)
    pairs = batch.load()
    times, states = trajectories(InversionConfig(num_steps=N, guidance_scale=2.0), moved, batch, pairs)
    cond, d = pairs.cond.cat(pairs.cond), 0.0
    for i in range(1, N + 1):
        eps, eps_ref = (denoise(moved.role(name), states[i], times[i], cond)[1] for name in ("train", "reference"))
        d = d + (eps - eps_ref).square().mean((1, 2, 3)) / (2 * moved.model.schedule(times[i])[0] ** 2)
    d_w, d_l = (d / N).chunk(2)
    for sign, factor in (("derived", -0.5), ("released", 0.5)):
        method = objective(moved, compare="published", sign=sign, beta=3.0, num_train_steps=N)
        expected = -torch.nn.functional.logsigmoid(factor * 3.0 * (d_w - d_l))
        torch.testing.assert_close(method(moved, batch).per_sample, expected.float(), rtol=1e-4, atol=1e-5)


def test_a_random_subset_of_steps_is_unbiased(fresh, folder):
    """Over all subsets of 2 of 4 steps, the gradient at the reference is on average that of all 4."""
    batch = batch_of(fresh, folder)
    whole = gradients(fresh, objective(fresh, num_train_steps=N)(fresh, batch))
    method, found = objective(fresh, num_train_steps=2), []
    for chosen in combinations(range(1, N + 1), 2):
        method._steps = lambda index, total, chosen=chosen: list(chosen)
        found.append(gradients(fresh, method(fresh, batch)))
    torch.testing.assert_close(torch.stack(found).mean(0), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert (found[0] - whole).norm() > 0.1 * whole.norm()
    drawn = torch.tensor([objective(fresh, num_train_steps=2)._steps(i, N) for i in range(2000)])
    shares = torch.bincount(drawn.flatten(), minlength=N + 1)[1:] / 2000
    torch.testing.assert_close(shares, torch.full((N,), 0.5), rtol=0, atol=0.04)
    assert bool((drawn[:, 0] < drawn[:, 1]).all())


def test_rows_do_not_depend_on_the_cut_and_are_inverted_once(moved, folder, tmp_path):
    config = {"beta": 50.0, "num_train_steps": 2, "prompt_dropout": 0.5}
    source = prepared(moved, folder, batch_size=3, cache=str(tmp_path))
    batch = next(iter(source))
    before = moved.calls.forward
    whole = objective(moved, **config)(moved, batch).per_sample
    first = moved.calls.forward - before
    parts = [objective(moved, **config)(moved, batch[rows]).per_sample for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    assert first == 2 * 6 * 2 + 2 * 6 * N, "policy and reference at 2 steps of 6 images; a guided call for each of N"
    assert moved.calls.forward - before - first == 2 * 6 * 2, "from the cache"
    again = next(iter(prepared(moved, folder, batch_size=3, cache=str(tmp_path))))
    before = moved.calls.forward
    torch.testing.assert_close(objective(moved, **config)(moved, again).per_sample, whole, rtol=1e-4, atol=1e-5)
    assert moved.calls.forward - before == 2 * 6 * 2, "from the disk"

"""Noise as what is trained: rows that know nothing of each other, in the real trainer."""

import itertools
import math

import pytest
import torch
from reno_toys import SHAPE, Toy, optimise
from torch import nn

from align.hooks._base import Hook
from align.policy.noise import Noise, NoiseBatch
from rewards import Reward
from rewards._config import RewardConfig
from samplers import noise

ROWS, PROMPTS = [3, 8, 1], ["a", "b", "c"]
VARIANTS = {
    "published": {},
    "adam": {"optim": {"algorithm": "adamw", "lr": 0.05}},
    "structure": {"objective": {"prior": "structure", "prior_weight": 1.0, "num_permutations": 5}},
    "no prior, no clip": {"objective": {"prior": "none"}, "max_grad_norm": None},
    "micro-batches": {"micro_batch_size": 2},
    "ancestral": {"sampling": {"num_steps": 3, "eta": 1.0}},
}


def start_of_spread_rows():
    """Rows of different lengths, so that norms and clips differ."""
    lengths = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64).view(3, 1, 1, 1)
    return noise(0, "x_T", ROWS, SHAPE).double() * lengths


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_independent(variant, tmp_path):
    """Three rows at once are the same three one by one: to 1e-8 after 5 iterations in float64."""
    start, settings = start_of_spread_rows(), VARIANTS[variant]
    together = optimise(tmp_path / "all", ROWS, PROMPTS, start=start, **settings)
    for i, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        micro = {"micro_batch_size": 1} if "micro_batch_size" in settings else {}
        alone = optimise(tmp_path / str(i), [row], [prompt], start=start[i : i + 1], **{**settings, **micro})
        torch.testing.assert_close(together.x_T[i : i + 1], alone.x_T, rtol=0, atol=1e-8)
        torch.testing.assert_close(together.best_reward[i], alone.best_reward[0], rtol=0, atol=1e-8)
        assert int(together.best_step[i]) == int(alone.best_step[0])
    assert float((together.x_T.detach() - start).abs().max()) > 1e-3


def test_the_first_gradient_in_float32_is_that_of_float64(tmp_path):
    """Plain descent at rate 1 without a clip: the move of one iteration is the gradient."""
    plain = {"optim": {"algorithm": "sgd", "lr": 1.0, "momentum": 0.0}, "max_grad_norm": None, "num_updates": 1}
    moves = {}
    for dtype in (torch.float32, torch.float64):
        done = optimise(tmp_path / str(dtype), ROWS, PROMPTS, dtype=dtype, **plain)
        moves[dtype] = (done.x_T.detach() - noise(0, "x_T", ROWS, SHAPE).to(dtype)).double()
    scale = float(moves[torch.float64].abs().max())
    assert float((moves[torch.float32] - moves[torch.float64]).abs().max()) < 1e-4 * scale


def test_the_gradient_of_a_row_is_that_of_its_own_loss(tmp_path):
    """Summed, not averaged: a row moves as far as it would alone, and as far as the formula says."""
    settings = {"optim": {"lr": 1.0, "momentum": 0.0}, "max_grad_norm": None, "num_updates": 1}
    start = start_of_spread_rows()
    done = optimise(tmp_path, ROWS, PROMPTS, start=start, objective={"prior": "radial"}, **settings)
    model, x = Toy(), start.clone().requires_grad_()
    y = x
    times = model.grids(2, SHAPE, "ddim").times
    for t, s in itertools.pairwise(times):  # an Euler step along the flow
        y = y + (s - t) * model.predict(None, y, t, model.text.encode(PROMPTS))
    luma = model.codec.decode(y).mul(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1)
    norm = x.flatten(1).norm(dim=1)
    loss = -luma.mean((1, 2)) - 0.01 * (47 * norm.log() - norm.square() / 2)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(done.x_T.detach(), start - gradient, rtol=1e-6, atol=1e-8)


def test_each_row_is_clipped_by_itself():
    trained = Noise(torch.zeros(3, 1, 1, 2))
    trained.x_T.grad = torch.tensor([[3.0, 4.0], [0.03, 0.04], [math.nan, 1.0]]).view(3, 1, 1, 2)
    norm = trained.clip(0.1)
    expected = torch.tensor([[0.06, 0.08], [0.03, 0.04], [0.0, 0.0]]).view(3, 1, 1, 2)
    torch.testing.assert_close(trained.x_T.grad, expected)
    assert float(norm) == pytest.approx((5 + 0.05) / 2)
    trained.x_T.grad = torch.full((3, 1, 1, 2), 7.0)
    trained.clip(None)
    assert torch.equal(trained.x_T.grad, torch.full((3, 1, 1, 2), 7.0))


class Scripted(Reward):
    """Says given scores, one list a call, whatever it sees."""

    def __init__(self, *calls):
        super().__init__(RewardConfig())
        self.calls = list(calls)

    def forward(self, images, prompts):
        return torch.tensor(self.calls.pop(0), dtype=images.dtype) + 0 * images.flatten(1).sum(1)


def iterates(path, scores, broken=None, **settings):
    """-> (noise at the end, x_T before each update) of a run whose rewards are scripted."""
    seen = []

    class Look(Hook):
        def start(self, state):
            seen.append(start_of_spread_rows())

        def after_update(self, state):
            seen.append(done[0].x_T.detach().clone())

    done = []
    original = Noise.prepare

    def prepare(self, accelerator):
        done.append(self)
        original(self, accelerator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "prepare", prepare)
        trained = optimise(
            path,
            ROWS,
            PROMPTS,
            start=start_of_spread_rows(),
            reward={"scripted": broken or Scripted(*scores)},
            num_updates=len(scores),
            hooks=[Look()],
            **settings,
        )
    return trained, seen


def test_the_best_iterate_is_kept_by_reward_and_the_start_counts(tmp_path):
    scores = [[5.0, 0.0, 0.0], [1.0, 2.0, 1.0], [2.0, 2.0, 3.0], [3.0, 1.0, 2.0]]
    trained, seen = iterates(tmp_path, scores)
    assert trained.best_step.tolist() == [0, 1, 2]  # a tie keeps the earlier one
    assert trained.best_reward.tolist() == [5.0, 2.0, 3.0] and trained.first_reward.tolist() == [5.0, 0.0, 0.0]
    assert trained.rewards == [list(row) for row in zip(*scores, strict=True)]
    for row, step in enumerate([0, 1, 2]):
        assert torch.equal(trained.best[row], seen[step][row])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(trained.best, trained.x_T)


def test_the_regulariser_does_not_decide_which_iterate_is_best(tmp_path):
    """Rewards fall while the regulariser's own gain is far larger."""
    scores = [[0.3] * 3, [0.2] * 3, [0.1] * 3]
    trained, _ = iterates(tmp_path, scores, objective={"prior": "radial", "prior_weight": 100.0})
    assert trained.best_step.tolist() == [0, 0, 0]


def test_frames_are_the_images_of_all_iterates(tmp_path):
    trained = optimise(tmp_path, ROWS, PROMPTS, micro_batch_size=2)
    assert [tuple(frames.shape) for frames in trained.frames] == [(5, *SHAPE)] * 3
    assert trained.frames[0].dtype == torch.uint8 and len({f[0].sum().item() for f in trained.frames}) == 3


def test_the_noise_on_the_way_is_frozen(tmp_path):
    """An ancestral sampler with nothing to climb: every iteration draws the very same image."""
    settings = {"objective": {"prior": "none"}, "sampling": {"num_steps": 3, "eta": 1.0}}
    flat = {"reward": {"scripted": Scripted(*[[0.0] * 3] * 5)}}
    trained = optimise(tmp_path, ROWS, PROMPTS, **settings, **flat)
    assert all(torch.equal(frames[0], frame) for frames in trained.frames for frame in frames)
    other = optimise(tmp_path, [4, 8, 1], PROMPTS, start=trained.best, **settings, **{"num_updates": 1})
    assert not torch.equal(other.frames[0][0], trained.frames[0][0])  # and it belongs to the sample


def test_a_state_comes_back():
    trained = Noise(noise(0, "x_T", ROWS, SHAPE))
    trained.observe((0, 3), 0, torch.tensor([1.0, 2.0, 3.0]), lambda: torch.zeros(3, 3, 2, 2))
    fresh = Noise(torch.zeros(3, *SHAPE))
    parameter = fresh.parameters()[0]
    fresh.load_state_dict({name: value.clone() for name, value in trained.state_dict().items()})
    assert fresh.parameters()[0] is parameter and isinstance(parameter, nn.Parameter)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), trained.state_dict().values(), strict=True)
    )


def test_a_part_of_a_batch_knows_its_rows():
    trained = Noise(torch.arange(5.0).view(5, 1, 1, 1))
    batch = NoiseBatch(trained, tuple("abcde"), (10, 11, 12, 13, 14), 0, (0, 5))
    part = batch[1:4][1:3]
    assert (part.prompts, part.indices, part.span) == (("c", "d"), (12, 13), (2, 4))
    assert part.x_T.flatten().tolist() == [2.0, 3.0]


class Broken(Reward):
    """Has no gradient for the second image at the third call."""

    calls = 0

    def forward(self, images, prompts):
        self.calls += 1
        scores = images.mean((1, 2, 3))
        if self.calls == 3:
            return torch.cat([scores[:1], scores[1:2] + (scores[1:2] - scores[1:2].detach()).sqrt(), scores[2:]])
        return scores


@pytest.mark.parametrize("optim", [{}, {"algorithm": "adamw", "lr": 0.05, "weight_decay": 0.1}], ids=["sgd", "adamw"])
def test_a_row_without_a_gradient_stays_where_momentum_would_carry_it_on(tmp_path, optim):
    _, seen = iterates(tmp_path, [[0.0] * 3] * 5, broken=Broken(RewardConfig()), optim=optim)
    assert torch.equal(seen[3][1], seen[2][1]) and not torch.equal(seen[4][1], seen[3][1])
    assert not torch.equal(seen[3][0], seen[2][0]), "the others go on"

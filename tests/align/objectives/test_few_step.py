"""TDM and Diff-Instruct as objectives: which step has gradient, who is asked at which times, and where it all ends."""

import pytest
import torch
from few_toys import SCHEDULES, World

from align.data.prompts import PromptBatch
from align.objectives.diff_instruct import DiffInstruct, DiffInstructConfig
from align.objectives.tdm import TDM, TDMConfig
from align.objectives.tdm_r1 import TDMR1
from align.sampling import SamplingConfig
from rewards import Composite
from rewards._combine import CombineConfig
from rewards.brightness import Brightness, BrightnessConfig

KINDS = (TDM, DiffInstruct)
ROWS = 256


def batch(rows=ROWS, first=0, step=0, prompt=""):
    return PromptBatch((prompt,) * rows, tuple(range(first, first + rows)), step)


def slopes(world, loss):
    own = world.roles["train"]
    return torch.autograd.grad(loss.per_sample.mean(), (own.m, own.sd), allow_unused=True)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_where_student_and_teacher_agree_there_is_nothing_to_do(name, kind):
    world = World(name, student=(0.3, 0.9), reference=(0.3, 0.9))
    found = slopes(world, world.objective(kind, guidance=1.0).student(world, batch()))
    assert all(float(g.abs().max()) < 1e-8 for g in found)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tdms_direction_is_the_shift_and_zero_at_no_shift(name):
    """Equal variances V: x0_teacher - x0_fake = (sigma^2/V)(mu - m) at every x_tau."""
    world = World(name, student=(0.5, 1.0), reference=(0.9, 1.0))
    method = world.objective(TDM, guidance=1.0)
    rows = method.rows(world, batch(8))
    tau, _ = method.noise(rows, "student")
    alpha, sigma = world.schedule(tau)
    loss = method.student(world, batch(8))
    torch.testing.assert_close(loss.metrics["apart"], sigma**2 / (alpha**2 + sigma**2) * 0.4)
    assert float(slopes(world, loss)[0][0]) < 0, "the mean rises to the teacher's"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_only_the_drawn_step_has_gradient(name, kind):
    world = World(name, 4, student=(0.5, 0.8), reference=(0.0, 1.0))
    method = world.objective(kind)
    rows, loss = method.rows(world, batch(64)), None
    for j in range(4):
        chosen = [i for i in range(64) if rows.step[i] == j]
        assert chosen, "all steps are drawn"
        loss = method.student(world, batch(64)).per_sample[chosen].sum()
        (grad,) = torch.autograd.grad(loss, world.roles["train"].m)
        assert (grad != 0).tolist() == [i == j for i in range(4)]
    times = method.grid_times()
    torch.testing.assert_close(rows.t, times[rows.step])
    torch.testing.assert_close(rows.s, times[rows.step + 1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_step_is_compared_between_its_own_time_and_the_next(name):
    world = World(name, 4)
    method = world.objective(TDM)
    rows = method.rows(world, batch())
    tau, eps = method.noise(rows, "student")
    assert bool((tau >= rows.s.clamp(min=0.02) - 1e-9).all() and (tau <= rows.t - 0.01 + 1e-9).all())
    again = method.noise(method.rows(world, batch(16, 8)), "student")
    assert torch.equal(again[0], tau[8:24]) and torch.equal(again[1], eps[8:24]), "by the image's number, in any cut"
    assert not torch.equal(method.noise(rows, "fake/0")[0], tau)
    wide = World(name, 4).objective(TDM, compare="above")
    assert float(wide.noise(rows, "student")[0].max()) > float(rows.t.max()) - 0.02
    assert bool((wide.noise(rows, "student")[0] >= rows.s - 1e-9).all())


def test_a_step_that_begins_below_the_least_time_is_compared_too():
    """As the last of SD3's, whose times are shifted twice."""
    world = World("flow", 64)
    low, high = world.objective(TDM)._intervals()
    assert float(low[-1]) == 0.02 and bool((high >= low + 0.01 - 1e-9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_without_guidance_is_asked_once(kind):
    """w = 1 drops the term; with w the target moves by (w - 1)(x0_c - x0_u), here by 0.1 (w - 1) of the mean."""
    found = {}
    for w in (1.0, 3.0):
        world = World("flow", student=(0.5, 1.0), reference=(0.4, 1.0))
        method = world.objective(kind, guidance=w)
        loss = method.student(world, batch(8, prompt="a"))
        found[w] = loss.metrics["apart"]
        assert [len(x) for x in world.roles["reference"].inputs] == [8 if w == 1 else 16]
    tau, _ = method.noise(method.rows(world, batch(8)), "student")
    gain = tau**2 / ((1 - tau) ** 2 + tau**2)
    torch.testing.assert_close(found[1.0], gain * 0.1)
    torch.testing.assert_close(found[3.0], gain * abs(0.4 + 0.1 * 3 - 0.6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_fake_learns_what_the_student_makes(name, kind):
    """Its loss is least at the student's mean, and its gradient goes to fake alone."""
    world = World(name, student=(0.5, 0.8))
    fake = world.roles["fake"]
    losses = []
    for mean in (0.3, 0.5, 0.7):
        fake.mean = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
        loss = world.objective(kind).fake(world, batch())
        assert slopes(world, loss) == (None, None) if loss.per_sample.requires_grad else True
        losses.append(float(loss.per_sample.mean().detach()))
    assert losses[1] == min(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_draws_the_student_once_and_moves_fake_first(kind):
    world = World("vp", 2)
    method = world.objective(kind, fake_updates=2)
    assert [move.trainable for move in method.moves(0)] == ["fake", "fake", "default"]
    seen = world.roles["train"].inputs
    for move in method.moves(0):
        move.objective(world, batch(4))
    assert len(seen) == 2 + 1, "two steps of the rollout, and one with gradient"
    method.fake(world, batch(4, step=1))
    assert len(seen) == 5, "the next round's student is another"
    one, two = (method.fake(world, batch(4), number=n).per_sample for n in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("form", ["kl", "score"])
@pytest.mark.parametrize("weight", ["one", "sigma2", "dmd"])
def test_both_divergences_pull_the_mean_to_the_teacher(form, weight):
    world = World("flow", student=(0.8, 1.0), reference=(0.2, 1.0))
    loss = world.objective(DiffInstruct, form=form, weight=weight, guidance=1.0).student(world, batch())
    mean, _ = slopes(world, loss)
    assert float(mean[0]) > 0


def test_the_reward_is_optional_and_read_at_the_image():
    world = World("flow", student=(0.5, 0.1), reference=(0.5, 0.1))
    world.codec.decode = lambda x0: x0[:, :1].expand(-1, 3, -1, -1)
    bright = Composite({"brightness": Brightness(BrightnessConfig())})
    method = world.objective(DiffInstruct, bright, guidance=1.0, reward_scale=7.0)
    loss = method.student(world, batch(32))
    without = world.objective(DiffInstruct, guidance=1.0).student(world, batch(32))
    torch.testing.assert_close(loss.per_sample + 7 * loss.metrics["reward/total"], without.per_sample)
    assert float(slopes(world, loss)[0][0]) == pytest.approx(-7, rel=1e-3), "the reward is the mean of the pixels"


def test_what_cannot_work_is_refused():
    def keys(config, **recipe):
        return {key for key, _ in config.conflicts(recipe)}

    fine = SamplingConfig(num_steps=4, guidance_scale=1.0)
    for config in (TDMConfig(), DiffInstructConfig()):
        assert not keys(config, sampling=fine)
        assert keys(config, sampling=SamplingConfig(num_steps=4)) == {"sampling.guidance_scale"}
        for rule in ({"step_rule": "heun"}, {"eta": 1.0}, {"step_rule": "lcm"}):
            wrong = set() if rule.get("step_rule") in config.rules else {"sampling.step_rule"}  # TDM takes lcm
            assert keys(config, sampling=SamplingConfig(num_steps=2, guidance_scale=1.0, **rule)) == wrong
    assert keys(DiffInstructConfig(t_min=0.995)) == {".t_min"}
    assert keys(DiffInstructConfig(), combine=CombineConfig(normalise="running")) == {"combine.normalise"}


@pytest.mark.parametrize("kind", (*KINDS, TDMR1))
def test_a_trained_student_waits_for_fake(kind):
    def moved(step):
        return [move.trainable for move in objective.moves(step)]

    objective = object.__new__(kind)
    objective.config, objective.surrogate = kind.Config(warmup=3, fake_updates=2), None
    others = ["fake", "fake", "surrogate"] if kind is TDMR1 else ["fake", "fake"]
    assert [moved(step) for step in (0, 2, 3)] == [others, others, [*others, "default"]]

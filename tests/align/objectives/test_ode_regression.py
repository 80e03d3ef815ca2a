"""ODE regression: zero where the student is the teacher, each step's error in velocities, and the teacher's map as its
minimum, for Gaussian data on VP and flow."""

from itertools import pairwise

import pytest
import torch
from few_toys import SCHEDULES, World

from align.data.prompts import PromptBatch
from align.objectives.ode_regression import OdeRegression
from samplers import broadcast

TEACHER = (0.4, 0.7)


def batch(rows=64, first=0, prompt="a circle"):
    return PromptBatch((prompt,) * rows, tuple(range(first, first + rows)), 0)


def rms(losses):
    return float(losses.detach().mean())


class Off:
    """A role whose output is off by a constant."""

    def __init__(self, role, by):
        self.role, self.by, self.schedule, self.kind = role, by, role.schedule, role.kind

    def __call__(self, x_t, t, cond):
        return self.role(x_t, t, cond) + self.by


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name):
    world = World(name, 4, reference=TEACHER, train=TEACHER)
    method = world.objective(OdeRegression, guidance=1.0, substeps=1)
    loss = method(world, batch())
    assert float(loss.per_sample.abs().max()) < 1e-12 and set(loss.metrics) == {f"error_{j}" for j in range(4)}
    assert rms(world.objective(OdeRegression, guidance=1.0, substeps=8)(world, batch()).per_sample) > 1e-6
    assert rms(world.objective(OdeRegression, guidance=3.0, substeps=1)(world, batch()).per_sample) > 1e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_error_counts_as_one_of_the_velocity_in_every_step(name):
    """Off by d: d^2 where the velocity is predicted; where eps is, an error of v of d/alpha."""
    world = World(name, 4, reference=TEACHER, train=TEACHER)
    world.roles["train"] = Off(world.roles["train"], 0.3)
    method = world.objective(OdeRegression, guidance=1.0, substeps=1)
    loss = method(world, batch(8))
    alpha, _ = world.schedule(method.grid_times()[:-1])
    each = (0.3 / alpha) ** 2 if name == "vp" else torch.full((4,), 0.09, dtype=torch.float64)
    for j in range(4):
        torch.testing.assert_close(loss.metrics[f"error_{j}"], each[j].expand(8), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.per_sample.detach(), each.mean().expand(8))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_minimum_is_the_teachers_map(name):
    """Gaussian data flows along straight quantiles: the state keeps its place among all of its time. A student that
    predicts so, linear in the state, has no loss against fine trajectories; one beside it has, with a gradient."""
    world = World(name, 3, reference=TEACHER)
    method = world.objective(OdeRegression, guidance=1.0, substeps=1024)
    times, (mean, std) = method.grid_times(), TEACHER
    mean += len("a circle") / 10
    own = world.roles["train"]
    with torch.no_grad():
        for j, (t, s) in enumerate(pairwise(times)):
            (a_t, s_t), (a_s, s_s) = world.schedule(t), world.schedule(s)
            slope = ((a_s * std) ** 2 + s_s**2).sqrt() / ((a_t * std) ** 2 + s_t**2).sqrt()
            scale = (a_t**2 + s_t**2).sqrt()  # of the state in z
            own.sd[j] = (slope - s_s / s_t) / (a_s - s_s * a_t / s_t) * scale
            own.m[j] = (a_s - slope * a_t) * mean / (a_s - s_s * a_t / s_t)
    before = rms(method(world, batch(32)).per_sample)
    assert before < 1e-6
    with torch.no_grad():
        own.m += 0.1
    loss = method(world, batch(32)).per_sample.mean()
    (slope,) = torch.autograd.grad(loss, own.m)
    assert float(loss) > 1e-3 and bool((slope > 0).all()), "every step is pulled back"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_teachers_states_are_its_own_chain_at_the_students_times(name):
    """By hand: two Euler steps within each of the student's, and noise by the image's number in any cut."""
    world = World(name, 2, reference=TEACHER)
    method = world.objective(OdeRegression, guidance=1.0, substeps=2)
    states, cond = method.states(world, batch(4)), world.text.encode(["a circle"] * 4)
    x = states[0]
    assert len(states) == 3 and len(method.fine) == 5
    for t, s in pairwise(method.fine):
        (a_t, s_t), (a_s, s_s) = world.schedule(t), world.schedule(s)
        out = world.roles["reference"](x, t, cond)
        x0 = x - s_t * out if name == "flow" else (x - s_t * out) / a_t
        x = broadcast(a_s, x) * x0 + s_s * (x - a_t * x0) / s_t
    torch.testing.assert_close(states[-1], x)
    torch.testing.assert_close(method.states(world, batch(2, 2))[-1], states[-1][2:])

"""Windows of stochastic steps: where they may lie, that they move as told, and that noise is drawn inside only."""

import pytest
import torch

from samplers import (
    LAWS,
    LEVELS,
    FlowSchedule,
    GaussianDenoiser,
    Prediction,
    Rng,
    Window,
    Windowed,
    constant,
    cps_law,
    densities,
    generator,
    grids,
    sample,
)

POSSIBLE = [True] * 9 + [False]


def decided(window: Window, number: int = 0) -> list[int]:
    flags = window.decide(POSSIBLE, number, generator(0, "window", number))
    assert len(flags) == len(POSSIBLE)
    return [i for i, flag in enumerate(flags) if flag]


def test_all_is_every_step_with_a_density():
    assert decided(Window()) == list(range(9))


def test_first_half_and_random_are_consecutive_and_reach_every_place():
    for start, last in (("first_half", 3), ("random", 7)):
        found = [decided(Window(start, 2), number) for number in range(200)]
        assert {first for first, _ in found} == set(range(last + 1))
        assert all(second == first + 1 for first, second in found)
        assert found == [decided(Window(start, 2), number) for number in range(200)], "of (seed, number) alone"


def test_sliding_moves_from_noise_to_data_and_stays_at_the_end():
    window = Window("sliding", 4, stride=2, every=3)
    assert [decided(window, n)[0] for n in range(10)] == [0, 0, 0, 2, 2, 2, 4, 4, 4, 5]
    assert decided(window, 1000) == [5, 6, 7, 8]


@pytest.mark.parametrize("window", [Window("first_half", 6), Window("random", 10), Window("sliding", 10)])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match="does not fit into"):
        decided(window)


@pytest.mark.parametrize("name", LAWS)
def test_the_step_into_data_is_never_inside(name, schedule):
    grid = grids.flow(5) if isinstance(schedule, FlowSchedule) else grids.ddim(schedule, 5, "trailing")
    found = densities(LAWS[name](LEVELS[name]), schedule, grid)
    assert found == [True] * 4 + [False]


def test_a_ddim_grid_that_ends_above_data_trains_its_last_step(vp):
    """Stable Diffusion's ends at t = 1/1000: DDPO's last step has a std of its own, and is trained."""
    grid = grids.ddim(vp, 5, "leading", offset=1, ends_at_zero=False)
    assert densities(LAWS["ddim"](1.0), vp, grid) == [True] * 5
    assert densities(LAWS["ddim"](0.0), vp, grid) == [False] * 5


def test_noise_is_drawn_inside_the_window_only():
    """Outside it the state depends on no noise of its own step, and equals the deterministic step."""
    data = GaussianDenoiser(FlowSchedule(), Prediction.FLOW, std=0.5)
    x_T, cond, grid = torch.randn(3, 2).double(), constant(torch.zeros(3, 2).double()), grids.flow(6)
    flags = [False, True, True, False, False, False]
    rule = Windowed(cps_law(0.8), flags)
    walk = sample(data, x_T, grid, cond, step=rule, keep="all", rng=Rng(0, range(3)))
    assert [not step.deterministic for step in walk.transitions] == flags
    plain = sample(data, x_T, grid, cond, keep="all")
    assert torch.equal(walk.states[1], plain.states[1]) and not torch.equal(walk.states[2], plain.states[2])

"""A window of grouped data that does not fit into the steps: one line, before anything is drawn."""

from types import SimpleNamespace

import pytest

from align.data._group_window import conflicts, possible
from align.data._wanted import Wanted
from align.data.groups import WindowConfig
from align.errors import UserError
from align.models._grids import VPGrids
from align.sampling import SamplingConfig
from samplers import FlowSchedule, VPSchedule, Window, grids

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TABLE |= {"set_alpha_to_one": False}  # as Stable Diffusion's: the last step ends above 0, and has a density
STEPS = Wanted(transitions=True)


def block(num_steps, **settings):
    return SamplingConfig(**{"num_steps": num_steps, "guidance_scale": 1.0, "eta": 1.0} | settings)


def model(kind):
    schedule = FlowSchedule() if kind == "flow" else VPSchedule.from_config(TABLE)
    own = (lambda n, *_: grids.flow(n)) if kind == "flow" else VPGrids(schedule, TABLE)
    return SimpleNamespace(schedule=schedule, grids=own, latent_shape=lambda size: (4, 8, 8))


@pytest.mark.parametrize(
    ("num_steps", "window", "said"),
    [
        (3, {"start": "first_half"}, "2 does not fit into the first half of sampling.num_steps=3. Set it to 1, or sam"),
        (1, {"start": "first_half"}, "2 does not fit into the first half of sampling.num_steps=1. Set sampling.num_"),
        (
            3,
            {"start": "sliding", "size": 4},
            "4 does not fit into sampling.num_steps=3. Set it to 3, or sampling.num_s",
        ),
    ],
)
def test_what_no_model_can_mend_is_said_of_the_recipe(num_steps, window, said):
    ((key, text),) = conflicts(WindowConfig(**window), block(num_steps))
    assert key == ".window.size" and text.startswith(said)
    enough = int(text.split(" or more")[0].split()[-1])
    assert not list(conflicts(WindowConfig(**window), block(enough)))
    assert list(conflicts(WindowConfig(**window), block(enough - 1)))


def test_what_is_not_looked_at_is_not_refused():
    window = WindowConfig(start="random", size=9)
    assert not list(conflicts(window, None)) and not list(conflicts(window, block(3, eta=0.0)))
    assert not list(conflicts(WindowConfig(size=9), block(3)))


@pytest.mark.parametrize(
    ("num_steps", "window", "said"),
    [
        (1, Window(), r"data.window: 1 of the steps .* 0 of sampling.num_steps=1 can be.* Set sampling.num_steps to 2"),
        (2, Window("random"), r"2 of the steps .* 1 of .*num_steps=2 .*data.window.size to 1, or .*num_steps to 3 or"),
        (3, Window("first_half"), r"2 of the steps .* 1 of .*num_steps=3 .*data.window.size to 1, or .*num_steps to 4"),
    ],
)
def test_what_a_flows_last_step_lacks_is_said_before_anything_is_drawn(num_steps, window, said):
    with pytest.raises(UserError, match=said):
        possible(window, STEPS, block(num_steps), model("flow"))
    assert len(possible(window, Wanted(), block(num_steps), model("flow"))) == num_steps  # no step is trained


def test_what_fits_is_one_bool_a_step():
    assert possible(Window("random"), STEPS, block(3), model("flow")) == [True, True, False]
    assert possible(Window(), STEPS, block(1), model("vp")) == [True]

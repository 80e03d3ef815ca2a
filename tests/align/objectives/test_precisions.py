"""What rounding explains in each precision, and states that were restored on another device than they are used on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from align.objectives._kept import Kept
from align.objectives._transitions import EXACT, HALF, Steps


@pytest.mark.parametrize(
    ("said", "dtype", "expected"),
    [
        (None, torch.float32, EXACT),
        (None, torch.float64, EXACT),
        (None, torch.bfloat16, HALF),
        (None, torch.float16, HALF),
        (0.5, torch.bfloat16, 0.5),
        (0.5, torch.float32, 0.5),
    ],
)
def test_the_tolerance_is_the_recipes_or_that_of_the_precision(said, dtype, expected):
    network = nn.ModuleList([nn.Linear(2, 2).to(dtype), nn.Linear(2, 2)])  # an adapter stays in float32
    parts = {"config": SimpleNamespace(tolerance=said), "model": SimpleNamespace(network=network)}
    assert Steps.tolerance.fget(SimpleNamespace(**parts, _autocast=False)) == expected
    assert Steps.tolerance.fget(SimpleNamespace(**parts, _autocast=True)) == (said or HALF), "whatever is kept"
    assert EXACT < HALF


def test_states_kept_over_a_resume_go_where_the_network_is():
    kept = Kept(SimpleNamespace(levers=SimpleNamespace(reuse=2)))
    kept.load_state_dict({"kept": {"updates": 1, "states": torch.randn(4, 3)}})
    batch = SimpleNamespace(indices=[0])
    rows = type("Rows", (), {"__getitem__": lambda self, key: batch})()
    kept.before_update([rows], lambda row: torch.randn(1, 3, device="meta"), lambda states: states)
    assert kept.said()["stale"].device.type == "meta"

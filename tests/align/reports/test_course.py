"""A trained reward that has fallen back is told, and noise is not."""

import numpy as np
import pytest

from align.reports.course import Fall, fall


def records(means, noise: float = 0.0, seed: int = 0) -> list[dict]:
    values = np.asarray(means) + noise * np.random.default_rng(seed).standard_normal(len(means))
    return [{"step": 0, "panel/judge": 0.2}, *({"step": i, "reward/total": float(v)} for i, v in enumerate(values, 1))]


def told(every: list[dict]) -> Fall | None:
    return fall(every, every[-1]["step"])


def test_a_reward_that_rose_and_fell():
    """16 updates at 0, 16 at 4, 16 at 1: three of the four gained are lost."""
    found = told(records([0.0] * 16 + [4.0] * 16 + [1.0] * 16))
    assert found is not None
    assert found == Fall(4.0, (17, 24), 1.0, (41, 48))
    assert str(found).startswith("the trained reward fell back from 4 in updates 17 to 24 to 1 in updates 41 to 48. ")


def test_what_comes_after_the_result_does_not_count():
    every = records([0.0] * 16 + [4.0] * 16 + [1.0] * 16)
    assert fall(every, 32) is None and fall(every, 48) is not None


def test_a_reward_that_fell_from_its_first_update_on():
    found = told(records(np.linspace(3, 0, 24), 0.05))
    assert found is not None and found.high == (1, 8)


@pytest.mark.parametrize(
    "means",
    [
        np.linspace(0, 3, 120),
        [0.0] * 40 + [4.0] * 40 + [2.5] * 40,  # less than half of what was gained
        [0.0] * 120,
        [0.0] * 15,  # too few to tell
        [],
    ],
    ids=["rises", "keeps most", "stays", "short", "none"],
)
def test_a_reward_that_did_not(means):
    assert told(records(means)) is None


def test_noise_is_no_fall():
    """Of 400 runs without a trend, at most one in a hundred is told to have fallen."""
    for length in (40, 100, 400):
        assert sum(told(records([0.0] * length, 1.0, seed)) is not None for seed in range(400)) <= 4


def test_rewards_that_are_no_numbers_are_left_out():
    every = records([0.0] * 16 + [4.0] * 16 + [1.0] * 16)
    every[20]["reward/total"] = None
    found = told(every)
    assert found is not None and found.best == 4.0

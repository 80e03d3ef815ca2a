"""The clock of scripts/bench/draft.py where updates share the steps before the window."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.draft import turns


def test_a_turn_is_the_mean_of_the_updates_that_share_a_prefix():
    """One of three pays for it: the median of single updates would leave its seconds out."""
    assert turns([4.0, 1.0, 1.0, 7.0, 1.0, 1.0], 3) == [2.0, 3.0]
    assert turns([4.0, 1.0], 1) == [4.0, 1.0]

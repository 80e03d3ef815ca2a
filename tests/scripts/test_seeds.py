"""The page of seeds: what is told of each skill."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.figures.seeds import by_skill

PROMPTS = ["a circle", "a blue star", "a red star"]


def told(before, after, prompts=PROMPTS):
    return {"prompts": prompts, "scores": {"before": {"judge": before}, "after": {"judge": after}}}


def test_skills_are_the_mean_of_all_seeds_prompts():
    """One single object, 0 and 1 before; two colours, 1 of 4 before and 3 of 4 after."""
    rows = by_skill([told([0, 0, 0], [1, 1, 0]), told([1, 1, 0], [1, 1, 1])])
    assert rows[1].startswith("| judge | single | two |")
    assert rows[3] == "| before | 50 % |  |  | 25 % |  |  |" and rows[4] == "| after | 100 % |  |  | 75 % |  |  |"


def test_of_prompts_that_are_not_the_embedded_worlds_nothing_is_told():
    assert by_skill([told([0], [1], ["a lighthouse"])]) == []
    assert by_skill([{"prompts": PROMPTS, "scores": {"before": {}, "after": {}}}]) == []

"""The comparison of searches by ranks: the published weights, what a search costs, and its page."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.noise.ranks import weights
from scripts.comparison import ranks


@pytest.mark.parametrize(("m", "order"), [(6, [3, 1, 0, 2, 5, 4]), (6, [3, 1]), (4, [0])])
def test_the_released_weights_are_off_by_one_over_the_edges(m, order):
    """m - 2 r in place of m - 1 - 2 r: what is named has 1/|E| too much, and the sum is k/|E| and not 0."""
    k = len(order)
    edges = k * (k - 1) / 2 + k * (m - k)
    excess = torch.zeros(m, dtype=torch.float64)
    excess[order] = 1 / edges
    torch.testing.assert_close(ranks.released(m, order) - weights(m, order), excess)
    assert float(ranks.released(m, order).sum()) == pytest.approx(k / edges)


def test_a_search_costs_what_is_said():
    """One round of a search whose images are its states: the first, m perturbations and the steps."""
    config = load_recipe(ranks.RECIPE).objective.ranks  # type: ignore[union-attr]
    search = ranks.Released(config, torch.zeros(1, 2, 2), lambda x: x.expand(-1, 3, -1, -1))
    search.round(lambda shown: list(range(len(shown))), torch.randn(config.num_images, 1, 2, 2))
    assert search.renders == ranks.renders(config, 1)


def test_the_page_is_of_what_was_measured(tmp_path):
    assert ranks.write(tmp_path, tmp_path / "ranks.md") is None
    for name, gain in (("right weights", 0.2), ("best of n", 0.4)):
        for seed in (0, 1):
            path = tmp_path / ranks.FOLDER / name.replace(" ", "-") / f"{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            said = {f"{part}/{label}": [0.1, 0.3] for part in ("before", "after") for label in ranks.LABELS}
            said["after/gold"] = [0.1 + gain + 0.1 * seed, 0.3 + gain + 0.1 * seed]
            path.write_text(json.dumps(said | {"length": [1.0, 1.2], "renders": 151}), encoding="utf-8")
    told = ranks.write(tmp_path, tmp_path / "ranks.md")
    assert told is not None
    text = told.read_text(encoding="utf-8")
    assert "**Verdict.** best of n gains most gold at equal renders, +0.450,\nand right weights least, +0.250." in text
    assert text.index("| best of n | **+0.450**") < text.index("| right weights | **+0.250**") and "| 1.10 |" in text

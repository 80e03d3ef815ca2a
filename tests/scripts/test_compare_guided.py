"""A negative against plain guidance: each arm at the scale that is best on select prompts, read on report prompts."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.evaluation.results import EVALUATION
from scripts.comparison import guided


def found(*means: float, count: int = 256):
    """An evaluation whose base and arms have these means of both judges."""
    scores = [{label: SimpleNamespace(mean=mean) for label in guided.LABELS} for mean in means]
    arms = [SimpleNamespace(scores={k: SimpleNamespace(after=v) for k, v in each.items()}) for each in scores[1:]]
    return SimpleNamespace(baseline=SimpleNamespace(scores=scores[0]), arms=arms, num_prompts=count)


def test_each_arm_is_read_at_the_scale_that_was_best_for_it(tmp_path, monkeypatch):
    """base passes most at 2, dpo at 1.5 and 3 alike (the smaller is taken), npo at 4.5, both at 3."""
    select = {
        1.5: (0.3, 0.5, 0.1, 0.2),
        2.0: (0.4, 0.4, 0.2, 0.3),
        3.0: (0.3, 0.5, 0.3, 0.6),
        4.5: (0.2, 0.1, 0.4, 0.2),
    }
    report = {"base": (0.4, 0.9), "dpo": (0.0, 0.5), "npo": (0.0, 0.45), "dpo+npo": (0.0, 0.7)}
    folder = tmp_path / guided.FOLDER / "seed-1"
    told = {folder / f"select-{scale:g}": found(*means, count=128) for scale, means in select.items()}
    told |= {folder / f"report-{arm}": found(*means) for arm, means in report.items()}
    for path in told:
        path.mkdir(parents=True)
        (path / EVALUATION).touch()
    monkeypatch.setattr(guided, "_read", told.__getitem__)
    assert guided.best(folder) == {"base": 2.0, "dpo": 1.5, "npo": 4.5, "dpo + npo": 3.0}
    text = guided.table(tmp_path)
    assert "128 select prompts" in text and "256 report" in text and "| base | 2 | 40.0% |  |  |" in text
    assert "| dpo | 1.5 | 50.0% | +0.100 (+0.100) |" in text and "| dpo + npo | 3 | 70.0% | +0.300 (+0.300) |" in text
    (folder / "report-npo" / EVALUATION).unlink()
    assert guided.table(tmp_path) == ""


@pytest.mark.parametrize("label", guided.LABELS)
def test_means_stand_in_the_order_of_the_arms(label):
    assert guided.means(found(0.1, 0.2, 0.3, 0.4), label) == [0.1, 0.2, 0.3, 0.4]

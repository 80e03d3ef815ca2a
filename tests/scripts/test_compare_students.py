"""Students of few steps beside the base: what stands in the rows, by hand."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.training.evaluate import FOLDER, SCORES
from scripts.comparison import students
from scripts.comparison.methods import STUDENTS


def told(judge: float, gold: float, energy: float) -> dict[str, list[float]]:
    return {"judge": [judge, judge], "gold": [gold, gold], students.BLUR: [energy, energy]}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """tdm-4 on two seeds: 40 and 44 % of the judge, 20 and 22 before, 42 at many steps."""

    def ended(folder: Path) -> list[SimpleNamespace]:
        return [run(folder, seed) for seed in (1, 2)] if folder.name == "tdm-4" else []

    def run(folder: Path, seed: int) -> SimpleNamespace:
        output = folder / f"seed-{seed}"
        (output / FOLDER).mkdir(parents=True, exist_ok=True)
        scores = {"before": told(0.18 + 0.02 * seed, 1.0, 50.0), "after": told(0.36 + 0.04 * seed, 1.2, 95.0)}
        (output / FOLDER / SCORES).write_text(json.dumps({"scores": scores}))
        metrics = [{"step": step, "seconds": 3.0 + step, "panel/judge": 0.2 + 0.1 * seed * step} for step in (0, 1)]
        report = SimpleNamespace(num_updates=7, scores={"judge": SimpleNamespace(num_prompts=2)})
        recipe = load_recipe("tdm/shapes", [f"train.seed={seed}"])
        return SimpleNamespace(output=output, report=report, recipe=recipe, metrics=metrics)

    for seed in (1, 2):
        path = students._teacher(tmp_path, load_recipe("tdm/shapes", [f"train.seed={seed}"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told(0.42, 1.1, 100.0)))
    monkeypatch.setattr(students, "ended", ended)
    return tmp_path


def test_a_student_stands_beside_the_base_at_few_and_at_many(runs):
    text = students.write(runs, runs / "students.md").read_text()
    begun = [students.ended(runs / "tdm-4")[0]]  # as if it had begun from itself, 3 points ago
    assert students._begun(runs, "tdm_r1", [{"after": told(0.43, 1.0, 1.0)}], begun, "judge") == "+0.030 (+0.030)"
    assert students._begun(runs, "tdm-4", [], [], "gold") == ""
    row, base, many = (line for line in text.splitlines() if line.startswith(("| tdm-4", "| shapes-sd")))
    assert row.startswith("| tdm-4 | 4 | 42.0% | **+0.000** [-0.254, +0.254] (-0.020 +0.020) | **+0.210** ")
    assert row.endswith("| 95% (95% 95%) | 7 | 7 |") and "(+0.100 +0.100)" in row
    assert base.startswith("| shapes-sd, no guidance | 4 | 21.0% |") and "| 50% (50% 50%) |" in base
    assert many == "| shapes-sd, guidance 2 | 20 | 42.0% | | | | | | | | |"
    assert students._curves({"tdm-4": students.ended(runs / "tdm-4")}) == {
        "tdm-4": [(0.0, 0.2), (1.0, pytest.approx(0.35))]
    }
    assert "<svg" in (runs / "img" / "students.svg").read_text() and "(img/students.svg)" in text
    assert "2 report prompts a seed" in text and "40 network calls an image" in text


NFT = "| nft | 4 | 41.5% | -0.103 (-0.103) | +0.225 (+0.225) | -0.016 (-0.016) |  | | 93% (93%) | 60 | 344 |"
BASES = (
    "| shapes-flow, no guidance | 4 | 14.2% | -0.365 (-0.365) | | | -0.241 (-0.241) | | 79% (79%) | | |",
    "| shapes-sd, no guidance | 4 | 18.3% | **-0.331** [-0.344, -0.317] (-0.327 -0.328 -0.337) | | | | | 85% | | |",
    "| shapes-flow, guidance 2 | 20 | 50.7% | | | | | | | | |",
)


def test_a_student_whose_runs_are_elsewhere_keeps_its_row(runs):
    """tdm-4 is renewed, nft stays; so do what the bases do and the figure, which show both."""
    page, figure = runs / "students.md", runs / "img" / "students.svg"
    alone = students.write(runs, page).read_text()
    row, free, many = (line for line in alone.splitlines() if line.startswith(("| tdm-4", "| shapes-sd")))
    before = ("| tdm-4 | 4 | 1.0% | -0.900 (-0.900) |", NFT, *BASES)
    page.write_text(alone.replace("\n".join((row, free, many)), "\n".join(before)))
    figure.write_text("of both")
    text = students.write(runs, page).read_text()
    table = text[text.index("| tdm-4") : text.index("\n\n![")].splitlines()
    assert table == [row, NFT, *BASES, many]
    assert "tdm-4 +0.0, nft -10.3; tdm-4 is best." in text and figure.read_text() == "of both"
    page.write_text(text.replace("2 report prompts", "1,024 report prompts"))
    with pytest.raises(SystemExit, match="rows are of 1,024 report prompts, and the runs found here of 2,"):
        students.write(runs, page)
    page.write_text(alone.replace(row, row.replace("tdm-4", "a student of old")).replace(free, BASES[1]))
    assert students.write(runs, page).read_text() == alone and "<svg" in figure.read_text()


def test_every_student_is_a_recipe_and_begins_from_one_of_as_many_steps():
    for student in STUDENTS.values():
        recipe = load_recipe(student.method.recipe, student.method.changes)
        if student.start:
            first = STUDENTS[student.start].method
            started = load_recipe(first.recipe, first.changes)
            assert (started.sampling.num_steps, started.adapter.rank) == (
                recipe.sampling.num_steps,
                recipe.adapter.rank,
            )
            assert started.sampling.spacing == recipe.sampling.spacing

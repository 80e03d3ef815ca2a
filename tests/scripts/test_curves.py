"""Learning curves: what is counted, by hand, and a section of the page from runs that have ended."""

import json
import sys
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.figures.statistics import compare
from scripts.comparison import curves, kept
from scripts.comparison.methods import CURVES, Method


def test_spikes_are_told_from_the_median():
    assert curves.spikes([1.0, 1.0, 1.0, 5.1, 4.9]) == pytest.approx(0.2)
    assert curves.spikes([]) == 0.0


def test_an_interval_over_seeds_is_students():
    """Three gains of mean .3 and deviation .1: half-width 4.3027 x .1/sqrt(3) = .2484."""
    assert curves.over_seeds([0.2, 0.3, 0.4]) == "**+0.300** [+0.052, +0.548] (+0.200 +0.300 +0.400)"
    assert curves.over_seeds([0.2]) == "+0.200 (+0.200)"


def test_what_a_cell_says_is_read_again():
    sure, not_sure = "**+0.300** [+0.052, +0.548] (+0.2 +0.4)", "**-0.300** [-0.700, +0.100] (-0.2 -0.4)"
    assert [kept.mean(cell) for cell in (sure, not_sure, "+0.200 (+0.200)")] == [0.3, -0.3, 0.2]
    assert [kept.apart_from_none(cell) for cell in (sure, not_sure, "+0.200 (+0.200)")] == [True, False, False]


def test_what_rewards_were_asked_about():
    online, gradient, pairs = (load_recipe(name) for name in ("nft/shapes", "draft/shapes", "diffusion_dpo/shapes"))
    assert curves.asked(online, [{"step": 1, "queries": 64.0}, {"step": 2, "queries": 128.0}]) == [64.0, 128.0]
    assert curves.asked(gradient, [{"step": 0}, {"step": 3}]) == [0, 3 * gradient.train.batch_size]
    assert curves.asked(pairs, [{"step": 1}]) == [] and not pairs.rewards
    steps, own = load_recipe("spo/shapes"), load_recipe("diffusion_dpo/shapes_online")
    assert curves.asked(steps, [{"step": 1}]) == []
    assert curves.asked(own, [{"step": s} for s in (0, 1, 4, 5)]) == [
        0,
        512,
        512,
        1024,
    ]  # 128 prompts of 4 for 4 updates


def test_a_drawing_for_several_updates_is_shared_among_them():
    records = [{"seconds": s} for s in (9.0, 1.0, 1.0, 1.0, 17.0, 1.0, 1.0, 1.0)]
    assert curves._middle(records, 4) == 4.0 and curves._middle(records, 1) == 1.0
    assert curves.parts([records], 4) == "4.0"


def test_the_parts_of_an_update_are_those_of_the_median_one():
    online = [[{"seconds": s, "rollout_seconds": 2.0, "reward_seconds": 0.5} for s in (4.0, 5.0, 90.0)]]
    assert curves.parts(online) == "2.0 + 0.5 + 2.5"
    assert curves.parts([[{"seconds": 3.0}]]) == "3.0"


def test_a_run_that_has_ended_is_reported_once(tmp_path, monkeypatch):
    """It is asked for again where the report is not there, is of other prompts or judges, or is not of the end."""
    small = ("train.num_updates=2", "train.batch_size=2", "sampling.num_steps=2", "sampling.last_k=1", "data.count=8")
    chapter = curves.Chapter("curves", "", {"one": Method("draft/shapes", small)}, judged={"judge": {}})
    output = tmp_path / "curves" / "one" / "seed-3"
    assert curves.train(tmp_path, chapter, "one", 3, prompts=16, panel=0).report.num_updates == 2
    calls = []
    monkeypatch.setattr(curves.align, "train", lambda recipe: calls.append(recipe) or curves.Run(output))

    def again(prompts: int = 16, of: curves.Chapter = chapter) -> int:
        before = len(calls)
        assert curves.train(tmp_path, of, "one", 3, prompts=prompts, panel=0).output == output
        return len(calls) - before

    assert again() == 0 and curves.ended(output.parent)
    assert again(17) == 1 and again(of=replace(chapter, judged={"judge": {}, "gold": {}})) == 1
    other = Method("draft/shapes", (*small, "optim.lr=1e-4"))
    assert again(of=replace(chapter, methods={"one": other})) == 1
    scores, summary = output / "report" / "scores.json", output / "summary.json"
    for path, old, new in (
        (scores, '"prompts": ["', '"prompts": ["not '),
        (scores, '"judge": [', '"gold": ['),
        (summary, '"num_updates": 2', '"num_updates": 1'),
        (summary, '"judge": {', '"gold": {'),
    ):
        kept_text = path.read_text()
        assert old in kept_text
        path.write_text(kept_text.replace(old, new))
        assert again() == 1
        path.unlink()
        assert again() == 1
        path.write_text(kept_text)
        assert again() == 0


def test_every_method_is_a_recipe_whose_learning_is_watched():
    for method in CURVES.values():
        load_recipe(method.recipe, method.changes)


def test_the_page_is_of_runs_that_have_ended(tmp_path, monkeypatch):
    """Two methods, two seeds each: the better first, its seconds and seeds told, both axes drawn."""

    def ended(folder: Path) -> list[SimpleNamespace]:
        gain = {"nft": 0.4, "grpo": 0.2}.get(folder.name)
        return [] if gain is None else [run(folder.name, gain + 0.02 * seed) for seed in (0, 1)]

    def run(name: str, gain: float) -> SimpleNamespace:
        recipe = load_recipe(f"{name}/shapes")
        records = [{"step": 0, "panel/judge": 0.2}]
        records += [{"step": s, "queries": 64.0 * s, "seconds": 2.0, "grad_norm": 1.0} for s in (1, 2)]
        records[-1]["panel/judge"] = 0.2 + gain
        before = torch.full((40,), 0.25)
        scores = {label: compare(before, before + gain) for label in curves.LABELS}
        return SimpleNamespace(recipe=recipe, metrics=records, report=SimpleNamespace(scores=scores, num_updates=2))

    monkeypatch.setattr(curves, "ended", ended)
    told = curves.write(tmp_path, tmp_path / "curves.md").read_text()
    assert told.index("| nft | 2 | 4 | 2.0 | 128 | 25.0% | **+0.410**") < told.index("| grpo | 2 | 4 | 2.0 | 128 |")
    assert (
        "**Verdict.** nft raises the share that the judge passes most, by 41.0 points,\nand grpo least, by 21.0."
        in told
    )
    assert "(+0.400 +0.420)" in told and "40 report prompts" in told and "(6 steps)" in told
    for axis in ("seconds", "asked"):
        xml.dom.minidom.parse(str(tmp_path / "img" / f"curves-{axis}.svg"))
    _what_is_elsewhere_stays(tmp_path, told)
    monkeypatch.setattr(curves, "ended", lambda folder: [])
    assert curves.write(tmp_path, tmp_path / "curves.md") is None


def _what_is_elsewhere_stays(folder: Path, told: str) -> None:
    """awm has no runs here: its row, which is the least now, its lines and what stands below the page's own."""
    page, figure, memory = folder / "curves.md", folder / "img" / "curves-asked.svg", folder / "img/curves-lines.json"
    awm = (
        "| awm | 9 | 30 | 1.0 + 0.5 + 2.5 | 288 | 25.0% | +0.100 (+0.100) | **+0.2** [+0.1, +0.3] (+0.1 +0.3) | 0.0% |"
    )
    nft = next(line for line in told.splitlines() if line.startswith("| nft"))
    page.write_text(told.replace(nft, "\n".join((awm, nft.replace("0.4", "0.9")))) + "\n## Below\n\n| more |\n")
    text = curves.write(folder, page).read_text()
    last = next(line for line in told.splitlines() if line.startswith("| grpo"))
    expected = told.replace(last, f"{last}\n{awm}").replace("grpo least, by 21.0.", "awm least, by 10.0 (one seed).")
    expected += "\n*Without the lines of awm, which were measured elsewhere.*\n"
    expected = expected.replace("nft, grpo: judge_graded", "nft, grpo, awm: judge_graded")  # its lines break anew
    assert text.split() == f"{expected}\n## Below\n\n| more |\n".split() and ">awm<" not in figure.read_text()
    drawn = json.loads(memory.read_text())
    line = [[0.0, 0.2], [288.0, 0.3]]
    memory.write_text(json.dumps(drawn | {"seconds": drawn["seconds"] | {"awm": line, "gone": line}}))
    assert "*Without" not in curves.write(folder, page).read_text()
    assert ">awm<" in figure.with_name("curves-seconds.svg").read_text() and ">awm<" not in figure.read_text()
    assert json.loads(memory.read_text()) == drawn | {"seconds": drawn["seconds"] | {"awm": line}}
    page.write_text(text.replace("40 report prompts", "41 report prompts"))
    with pytest.raises(SystemExit, match="of 41 report prompts"):
        curves.write(folder, page)
    page.unlink()
    assert curves.write(folder, page).read_text() == told and json.loads(memory.read_text()) == drawn

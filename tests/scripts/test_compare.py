"""The comparison: costs that can be checked by hand, runs that are not repeated, a page from what was measured."""

import json
import shutil
import sys
import xml.dom.minidom
from pathlib import Path

import pytest
import torch
import yaml
from pair_toys import write_pairs
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.figures.statistics import interval
from align.models._step_aware import StepAwareClip
from align.reports.summary import Summary
from align.shapes.embedded import resolve
from scripts.comparison import counting, draw, hacking, measure, page
from scripts.comparison.methods import FIRST, METHODS, Method, parse


def test_what_chooses_among_images_pays_for_each(tmp_path, monkeypatch, recipe):
    """By hand: 3 forwards and a decoded image; as many of them as the budget of 2 prompts pays."""
    mine, chooser = bench(tmp_path, monkeypatch, recipe), Method(recipe, trained=False)
    cost = mine.cost("best", chooser)
    assert cost["forward-equivalents"] == pytest.approx(3 + mine._units(chooser)["decode"], rel=0.05)
    monkeypatch.setattr(mine, "budget", lambda: {column: 6 * each for column, each in cost.items()})
    mine.measure("best", chooser, 11)
    for column in measure.COLUMNS:
        told = json.loads((tmp_path / "best" / "seed-11" / f"{column}.json").read_text())
        before, after = (told["scores"][when]["pick"] for when in ("before", "after"))
        assert told["updates"] == 3 and all(b <= a for b, a in zip(before, after, strict=True)) and before != after


def test_every_method_is_a_recipe_that_loads():
    from align.config import load_recipe

    for method in METHODS.values():
        load_recipe(method.recipe, method.changes)
    name, method = parse("dpo=diffusion_dpo/shapes objective.beta=100 train.num_updates=3")
    assert name == "dpo" and method == Method("diffusion_dpo/shapes", ("objective.beta=100", "train.num_updates=3"))


@pytest.fixture(scope="module")
def recipe(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tiny_sd_factory().save_pretrained(folder / "model")
    tree = {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a red star", "a square"]},
        "rewards": {"pick": {"name": "brightness"}},
        "sampling": {"num_steps": 3, "guidance_scale": 1.0, "last_k": 1},
        "adapter": {"rank": 1},
        "train": {"num_updates": 2, "batch_size": 2},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "tiny.yaml")


def bench(tmp_path, monkeypatch, recipe) -> measure.Bench:
    monkeypatch.setattr(measure, "TRIAL", 1)
    monkeypatch.setattr(measure, "METHODS", {FIRST: Method(recipe)})
    monkeypatch.setattr(measure, "PROMPTS", ["a red star", "b"])
    monkeypatch.setattr(measure, "JUDGES", {"pick": {"name": "brightness"}})
    return measure.Bench(tmp_path, num_prompts=2)


def test_costs_and_runs(tmp_path, monkeypatch, recipe):
    """By hand: 2 rows of 3 forwards, the last again and backward (2); 2 images decoded, decoded again and backward."""
    mine = bench(tmp_path, monkeypatch, recipe)
    cost = mine.cost(FIRST, Method(recipe))
    full = mine.cost("full", Method(recipe, ("sampling.window=full",)))
    unit = mine._units(Method(recipe))
    assert unit["decode"] > 0.1 and unit["reward"] == 0, "brightness multiplies no matrices"
    assert cost["forward-equivalents"] == pytest.approx(2 * (3 + 1 + 2) + 2 * (1 + 1 + 2) * unit["decode"])
    assert full["forward-equivalents"] - cost["forward-equivalents"] == pytest.approx(2 * 2 * (1 + 2))

    calls = []
    train = measure.align.train
    monkeypatch.setattr(measure.align, "train", lambda *a, **k: (calls.append(a), train(*a, **k))[1])
    monkeypatch.setattr(mine, "cost", lambda *_: {"wall-clock": 1.0, "forward-equivalents": 1.0})
    mine.updates = 1
    mine.measure(FIRST, Method(recipe), 11)
    told = {c: json.loads((tmp_path / FIRST / "seed-11" / f"{c}.json").read_text()) for c in measure.COLUMNS}
    assert {c: t["updates"] for c, t in told.items()} == dict.fromkeys(measure.COLUMNS, 1)
    assert len(told["wall-clock"]["curve"]) == 1 and told["wall-clock"]["scores"]["after"]["pick"]
    made = len(calls)
    mine.measure(FIRST, Method(recipe), 11)
    assert len(calls) == made == 2, "what has been measured is not measured again"
    monkeypatch.setattr(draw, "METHODS", {FIRST: Method(recipe)})
    drawn = draw.draw(mine, FIRST, 11, tmp_path, count=2, verdict="pick")
    assert drawn is not None and Image.open(drawn).width > 4 * 128
    assert draw.draw(mine, FIRST, 12, tmp_path) is None, "not trained"

    monkeypatch.setattr(measure, "STRENGTHS", (0.0, 1.0))
    mine.sweep(FIRST, Method(recipe), 11)
    gains = json.loads((tmp_path / FIRST / "seed-11" / "sweep.json").read_text())
    scores = told["wall-clock"]["scores"]
    gain = sum(scores["after"]["pick"]) / 2 - sum(scores["before"]["pick"]) / 2
    assert gains == {"0": {"pick": 0.0}, "1": {"pick": pytest.approx(gain, abs=1e-9)}} and gain != 0


def test_an_update_on_pairs_has_a_cost(tmp_path, monkeypatch, recipe):
    """By hand: 2 pairs, 4 rows forward under the reference, forward and backward (2) under the policy."""
    mine, pairs = bench(tmp_path, monkeypatch, recipe), write_pairs(tmp_path / "pairs", 4)
    data = f"data={{name: preferences, pairs: {pairs}}}"
    cost = mine.cost("pairs", Method(recipe, ("objective=diffusion_dpo", data, "rewards={}")))
    assert cost["forward-equivalents"] == pytest.approx(4 * (1 + 1 + 2)) and cost["wall-clock"] > 0


def test_what_a_step_aware_model_judges_is_counted():
    judge = StepAwareClip(str(resolve("embedded:shapes-clip")))
    with counting.counted() as rows:
        judge(torch.rand(3, 3, 64, 64), ["a", "b", "c"], torch.zeros(3))
    assert rows == {"decode": 0, "reward": 3}


def test_gradients_of_rewards_and_of_pairs_are_measured(tmp_path, monkeypatch, recipe):
    """Half the noise with four times the rows: the variance of a mean of independent rows."""
    mine, pairs = bench(tmp_path, monkeypatch, recipe), write_pairs(tmp_path / "pairs", 24)
    data = f"data={{name: preferences, pairs: {pairs}}}"
    for name, *changes in (("reward",), ("pairs", "objective=diffusion_dpo", data, "rewards={}")):
        found = {}
        for rows in (2, 8):
            mine.variance(f"{name}-{rows}", Method(recipe, tuple(changes)), batches=32, rows=rows)
            found[rows] = json.loads((tmp_path / f"{name}-{rows}" / "variance.json").read_text())
        assert 2 < found[2]["variance"] / found[8]["variance"] < 8 and found[2]["norm"] > 0


def test_each_budget_gives_its_own_number_of_updates(tmp_path, monkeypatch):
    """Twice as slow and three times as costly: a half and a third of the updates, the shorter run first."""
    costs = {
        FIRST: {"wall-clock": 1.0, "forward-equivalents": 10.0},
        "x": {"wall-clock": 2.0, "forward-equivalents": 30.0},
    }
    mine = measure.Bench(tmp_path, updates=60)
    monkeypatch.setattr(mine, "cost", lambda name, method: costs[name])
    lengths = []

    class Done:
        interrupted, output, metrics = None, tmp_path, ()

    def train(recipe, changes):
        lengths.append(int(next(c for c in changes if c.startswith("train.num_updates=")).partition("=")[2]))
        return Done()

    monkeypatch.setattr(measure.align, "train", train)
    monkeypatch.setattr(mine, "_keep", lambda folder, column, method, seed, run, length: None)
    mine.measure("x", Method("r"), 1)
    assert lengths == [20, 30]


def overoptimised(folder: Path) -> None:
    """Gold 1.2 -> 1.4 -> 1.45 -> 1.0 over 80 updates; the guard keeps update 20 and stops after 60."""
    gold = {0: 1.2, 20: 1.4, 40: 1.45, 60: 1.3, 80: 1.0}
    lines = [
        json.dumps({"step": s, "panel/gold": g, "panel/judge": g / 2, "guard/score": g, "reward/total": s / 10})
        for s, g in gold.items()
    ]
    for name in ("guarded", "free"):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        told = Summary(
            method="draft", model="sd", seed=0, num_processes=1, num_updates=60, stopped="the guard", chosen_update=20,
            report_prompts=None, trained_on=["pick"], seconds=1, seconds_per_update=1, network_calls=1,
            forward_equivalents=1, peak_rss_mib=1, peak_gpu_mib=None, hardware="", versions={},
        )  # fmt: skip
        (folder / name / "summary.json").write_text(told.model_dump_json())


def test_the_page_is_what_was_measured(tmp_path):
    torch.manual_seed(0)
    gains = {"draft-1": 0.2, "x & y": -0.1}
    for name, gain in gains.items():
        for seed in (11, 12):
            before = torch.rand(40)
            scores = {
                "before": {"gold": before.tolist(), "pick": before.tolist()},
                "after": {
                    "gold": (before + gain + 0.1 * torch.randn(40)).tolist(),
                    "pick": (before + 0.5).tolist(),
                },
            }
            for column in measure.COLUMNS:
                path = tmp_path / "runs" / name / f"seed-{seed}" / f"{column}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                curve = [[i, 0.5 * i, gain * i, 1.0] for i in (1, 2, 3)]
                path.write_text(json.dumps({"updates": 7, "scores": scores, "curve": curve}))
        (tmp_path / "runs" / name / "cost.json").write_text(json.dumps({"wall-clock": 0.5}))
    for name, norm, relative in (("draft-1", 2.0, 5.0), ("draft-lv", 2.0, 3.0), ("draft-5", 1.0, 3.0)):
        path = tmp_path / "runs" / name / "variance.json"
        path.parent.mkdir(exist_ok=True)
        measured = {"norm": norm, "variance": relative, "signal": 1.0, "signal_error": 0.1}
        path.write_text(json.dumps({**measured, "batches": 4, "rows": 2}))
        told = {strength: {"pick": float(strength), "judge_graded": norm} for strength in ("0.5", "1")}
        (path.parent / "seed-11").mkdir(exist_ok=True)
        (path.parent / "seed-11" / "sweep.json").write_text(json.dumps(told))
    written = page.write(tmp_path / "runs", tmp_path / "results.md").read_text()
    assert "LV lower the variance holds here" in written and "grows with K does NOT hold here" in written
    assert "at the strengths 0, 0.5, 1; they were trained at 1." in written
    files = [tmp_path / "runs" / "draft-1" / f"seed-{s}" / "wall-clock.json" for s in (11, 12)]
    told = [json.loads(file.read_text())["scores"] for file in files]
    mean = (
        torch.stack([torch.tensor(t["after"]["gold"]) - torch.tensor(t["before"]["gold"]) for t in told])
        .double()
        .mean(0)
    )
    expected = interval(mean)
    assert f"| draft-1 | 7 | 2 | {expected.mean:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}] |" in written
    assert written.index("| draft-1 |") < written.index("| x & y |"), "best first"
    assert "K = 1 gains" not in written, "of all steps nothing was measured"
    assert "## Against" not in written, "of DPO nothing was measured"
    shutil.copytree(tmp_path / "runs" / "draft-1", tmp_path / "runs" / "spo-tweedie")
    shutil.copytree(tmp_path / "runs" / "x & y", tmp_path / "runs" / "diffusion-dpo")
    shutil.copytree(tmp_path / "runs" / "x & y", tmp_path / "runs" / "inversion-dpo-anchored")
    (tmp_path / "runs" / "x & y").rename(tmp_path / "runs" / "draft-full")
    written = page.write(tmp_path / "runs", tmp_path / "results.md").read_text()
    assert "K = 1 gains" in written and "than all steps. The papers' claim" in written
    assert "more gold. The papers' claim that SPO learns faster than DPO holds here" in written
    assert "inversion-dpo-anchored gains +0.000 [+0.000, +0.000] more gold. The papers' claim" in written
    for figure in (
        "results-wall-clock.svg",
        "results-forward-equivalents.svg",
        "results-speed.svg",
        "results-proxy.svg",
        "results-front.svg",
    ):
        assert f"img/{figure}" in written
        xml.dom.minidom.parse(str(tmp_path / "img" / figure))
    assert page.write(tmp_path / "nothing", tmp_path / "results.md") is None


def test_the_page_of_hacking_says_where_the_guard_stopped_and_what_was_lost_without_it(tmp_path):
    overoptimised(tmp_path / "runs" / "overoptimised" / "pick")
    written = hacking.write(tmp_path / "runs", tmp_path / "hacking.md").read_text()
    assert "less its best on the way: pick -0.450;\nwhere the guard chooses: pick -0.050." in written
    assert "ends the run after update 60 and keeps update 20: gold 1.400, judge 70%." in written
    assert "is 2.000 there and 7.000 at the end" in written
    assert "img/hacking-pick.svg" in written
    xml.dom.minidom.parse(str(tmp_path / "img" / "hacking-pick.svg"))
    assert hacking.write(tmp_path / "nothing", tmp_path / "hacking.md") is None


def test_noise_optimisation_is_put_between_its_marks(tmp_path):
    from scripts.comparison import reno

    diary = tmp_path / "reno.md"
    diary.write_text("# Diary\n<!-- written by compare.py -->\nold\n<!-- end -->\nhow it was found\n")
    assert reno.write(tmp_path, diary) is None and "old" in diary.read_text()
    (tmp_path / "reno").mkdir()
    (tmp_path / "reno" / "table.md").write_text("| score | ReNO |\n")
    assert reno.write(tmp_path, diary) == diary
    text = diary.read_text()
    assert "| score | ReNO |" in text and "old" not in text
    assert text.startswith("# Diary") and text.endswith("how it was found\n")

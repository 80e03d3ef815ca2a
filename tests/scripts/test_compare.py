"""The comparison: methods that load, best of n, the page of all methods, hacking, noise optimisation."""

import json
import sys
import xml.dom.minidom
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align.config import load_recipe
from align.reports.summary import Summary
from scripts.comparison import best, hacking, kept, methods, parts, results

TABLE = """# A chapter

| method | updates | seconds | parts | asked | judge before | judge | gold | spikes |
|---|---|---|---|---|---|---|---|---|
| {name} | 60 | 96 | 1.6 | steps | 22.0% | **{judge}** [+0.077, +0.278] (+0.184 +0.135) | +0.325 (+0.330) | 0.0% |
"""


@pytest.mark.parametrize("group", ["CURVES", "PREFERENCES", "GRADIENTS", "HACKED", "AIMS", "EQUAL"])
def test_every_method_is_a_recipe_that_loads(group):
    for method in getattr(methods, group).values():
        load_recipe(method.recipe, method.changes)


def test_gradients_spend_the_same_network_calls():
    for name, method in methods.GRADIENTS.items():
        recipe = load_recipe(method.recipe, method.changes)
        assert recipe.train.num_updates * methods.EACH[name] == pytest.approx(methods.CALLS, rel=0.01), name
        assert recipe.sampling.num_steps == 6 and recipe.train.batch_size == 32


def test_the_best_of_more_is_never_worse_by_what_chooses(tmp_path, monkeypatch):
    """By pick alone, which also watches: each n holds the images of the ones before it."""
    monkeypatch.setattr(best, "NUMBERS", (1, 2, 3))
    monkeypatch.setattr(parts, "JUDGES", {"pick": parts.JUDGES["pick"]})
    chosen = parts.composite(load_recipe("draft/shapes", [methods.PICK]).rewards)
    monkeypatch.setattr(best, "composite", lambda *_: chosen)
    best.measure(tmp_path, 5, prompts=6)
    path = tmp_path / "best-of-n" / "seed-5.json"
    told = json.loads(path.read_text())
    one, two, three = (told["best"][n]["pick"] for n in "123")
    assert one <= two <= three and one < three and told["steps"] == 6 and told["seconds"] > 0
    path.write_text("{}")
    best.measure(tmp_path, 5, prompts=6)
    assert path.read_text() == "{}", "what is there is not drawn again"


def test_the_page_of_all_methods_is_the_chapters_and_best_of_n(tmp_path):
    """By hand: 96 s at 0.25 s an image pay for 384 choices, three more images each: 128 images; at its cost the
    64 prompts have n = 1 + 96/0.25/64 = 7, between 4 and 8."""
    (tmp_path / "gradients.md").write_text(TABLE.format(name="drtune", judge="+0.150"))
    (tmp_path / "preferences.md").write_text(TABLE.format(name="spo", judge="+0.300"))
    assert results.write(tmp_path / "runs", tmp_path / "results.md") is None, "best of n was not measured"
    found = {"1": (0.2, 1.0), "2": (0.3, 1.1), "4": (0.4, 1.2), "8": (0.48, 1.3)}
    told = {n: {"judge": judge, "gold": gold} for n, (judge, gold) in found.items()}
    (tmp_path / "runs" / "best-of-n").mkdir(parents=True)
    for seed in (1, 2):
        run = {"prompts": 64, "steps": 6, "seconds": 0.25, "best": told}
        (tmp_path / "runs" / "best-of-n" / f"seed-{seed}.json").write_text(json.dumps(run))
    text = results.write(tmp_path / "runs", tmp_path / "results.md").read_text()
    assert "drtune +15.0 from a reward's gradient, spo +30.0 from preferences;\nbest of 2 +10.0, of 4 +20.0" in text
    assert "anew. At a training's cost choosing gains more in 1 of 2 measured." in text, "0.260 is between the two"
    assert "| drtune | +0.150 | best of 4 | 128 | n = 7.0: +0.260 |" in text
    assert "| spo | +0.300 | more than 8 |  | n = 7.0: +0.260 |" in text
    assert "| 4 | 24 | 40.0% | **+0.200** [+0.200, +0.200] (+0.200 +0.200) |" in text
    drtune = "| drtune | a reward's gradient: eye + pick |"
    assert text.index("| spo | preferences: pick |") < text.index(drtune), "best first"
    (tmp_path / "gradients.md").write_text(TABLE.format(name="drtune", judge="+0.400"))
    elsewhere = results.write(tmp_path / "none", tmp_path / "results.md").read_text()
    assert (
        "drtune +40.0 from a reward's gradient, spo +30.0 from preferences;\nbest of 2 +10.0, of 4 +20.0" in elsewhere
    )
    below = text[text.index("## Best of n") :]
    assert elsewhere[elsewhere.index("## Best of n") :] == below + results.LATER, "as the page has it, and another gain"
    (tmp_path / "gradients.md").write_text(TABLE.format(name="drtune", judge="+0.150"))
    assert results.write(tmp_path / "none", tmp_path / "results.md").read_text() == text, "nothing is new"
    (tmp_path / "curves.md").write_text(TABLE.format(name="draft", judge="+0.450"))
    for _ in range(2):
        later = results.write(tmp_path / "none", tmp_path / "results.md").read_text()
        assert "draft +45.0" in later and later.endswith(f"{text[-40:]}{results.LATER}"), "said once"


def test_a_row_says_what_its_training_asks_and_whether_that_knows_the_truth():
    assert methods.asks(methods.CURVES["nft"]) == ("judge_graded",)
    assert methods.asks(methods.PREFERENCES["kto"]) == ("judge",), "labels are made by it"
    assert methods.asks(methods.PREFERENCES["online-dpo"]) == ("gold",), "the change counts"
    every = {"draft": methods.CURVES["draft"]} | methods.PREFERENCES
    told = " ".join(methods.learnt(every, ["draft", "kto", "dro"]).split())
    assert told.startswith("Rewards in training: draft: eye + pick; kto, dro: judge. What asks judge, ")
    assert "truth" not in methods.learnt(every, ["draft"])


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


def test_the_page_of_hacking_says_where_the_guard_stopped_and_what_was_lost_without_it(tmp_path):
    overoptimised(tmp_path / "runs" / "overoptimised" / "pick")
    written = hacking.write(tmp_path / "runs", tmp_path / "hacking.md").read_text()
    assert "less its best on the way: pick -0.450;\nwhere the guard chooses: pick -0.050." in written
    assert "ends the run after update 60 and keeps update 20: gold 1.400, judge 70%." in written
    told = "is 2.000 there, 7.000 at its highest (update 80: gold 1.000, judge 50%) and 7.000 at the end."
    assert told in written
    assert "img/hacking-pick.svg" in written
    xml.dom.minidom.parse(str(tmp_path / "img" / "hacking-pick.svg"))
    assert hacking.write(tmp_path / "nothing", tmp_path / "hacking.md") is None
    overoptimised(tmp_path / "others" / "overoptimised" / "eye")
    both = hacking.write(tmp_path / "others", tmp_path / "hacking.md").read_text()
    assert "pick -0.450, eye -0.450;\nwhere the guard chooses: pick -0.050, eye -0.050." in both
    assert kept.sections(both)["pick"] == kept.sections(written)["pick"], "its runs are elsewhere"


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

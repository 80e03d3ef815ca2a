"""`align evaluate --benchmark` on the embedded world: tables equal to the judge's own on the images that lie there."""

import csv
import json

import pytest
import torch

from align.errors import UserError
from align.evaluation import run as run_module
from align.evaluation.plan import plan
from align.evaluation.results import EVALUATION, read
from align.evaluation.run import Session
from align.shapes.captions import parse
from align.shapes.judge import judge
from align.shapes.picture import load_png


def made(**options):
    changes = ["sampling.num_steps=2", *options.pop("changes", ())]
    systems = options.pop("systems", ["base"])
    return plan(systems, recipe="reno/shapes", changes=changes, batch_size=5, num_images=1, **options)


def test_the_tables_are_the_judges_own(tmp_path, monkeypatch):
    session = Session(made(systems=["best-of:2"], benchmark="shapes:report", count=12), tmp_path, lambda text: None)
    found = session.run()
    assert found is not None and found.benchmark is not None
    for slug, label in ((found.baseline.slug, None), (found.arms[0].slug, found.arms[0].label)):
        captions = [item.prompt for item in session.plan.items]
        images = torch.stack([load_png(tmp_path / "images" / slug / f"{i:04d}-0.png") for i in range(12)])
        strict = torch.tensor([float(v.strict) for v in judge(images, captions)])
        skills = [parse(caption).skill for caption in captions]
        for skill in set(skills):
            mine = strict[[k for k, one in enumerate(skills) if one == skill]].mean()
            table = found.benchmark.baseline[skill] if label is None else found.benchmark.arms[label][skill].after
            assert table.mean == pytest.approx(float(mine))
        row = found.benchmark.baseline["score"] if label is None else found.benchmark.arms[label]["score"].after
        assert row.mean == pytest.approx(float(strict.mean())), "the skills have equal shares"
    with (tmp_path / "benchmark.csv").open() as file:
        assert {line["row"] for line in csv.DictReader(file)} == {"score", *skills}
    assert read((tmp_path / EVALUATION).read_text()).benchmark == found.benchmark
    monkeypatch.setattr(run_module, "answered", None)  # a second time nothing is asked
    assert Session(session.plan, tmp_path, lambda text: None).run().benchmark == found.benchmark


def test_a_list_of_ones_own_answered_by_the_eye(tmp_path):
    rows = [
        {"prompt": "a red circle and a blue star", "category": "pairs", "questions": [
            {"question": "a red circle and a blue star", "skill": "both"}, {"question": "two stars", "skill": "none"}]},
        {"prompt": "three squares", "questions": [{"question": "three squares", "skill": "both"}]},
    ]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = made(benchmark=str(file), rewards=["eye"], changes=["eye.form=soft"])
    found = Session(asked, tmp_path / "out", lambda text: None).run()
    assert found is not None and found.benchmark is not None
    assert found.benchmark.questions == {"score": 3, "both": 2, "none": 1}
    assert found.baseline.scores["eye"].mean == pytest.approx(found.benchmark.baseline["both"].mean, abs=1e-6)


def test_what_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(UserError, match="a benchmark has its own"):
        made(benchmark="shapes:report", prompts="shapes:report")
    with pytest.raises(UserError, match="neither a file nor one of"):
        made(benchmark="nothing")

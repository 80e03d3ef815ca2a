"""A finished run's folder of which something is missing or damaged: what reads it names the file in one line, or shows
the rest."""

import json

import pytest
from run_toys import finished_run
from test_report import folder
from typer.testing import CliRunner

from align.commands.app import app
from align.training import evaluate

SCORES = f"{evaluate.FOLDER}/{evaluate.SCORES}"
BOTH = {"before": {"a": [0.5]}, "after": {"a": [1.0]}}
READ = ("report", "watch --once")
EVERY = (*READ, "publish --dry-run --repo me/x")
DAMAGE = {
    # (file, what it holds; None: it is gone): (what reads it, what is said)
    ("recipe.yaml", None): (EVERY, "recipe.yaml"),
    ("recipe.yaml", "a: [1"): (EVERY[1:], "not valid YAML"),
    ("recipe.yaml", "[1, 2]"): (EVERY[1:], "a recipe is a mapping"),
    ("recipe.yaml", b"a: \xff"): (EVERY, "is not UTF-8"),
    ("metrics.jsonl", "[1]\n"): (READ, "line 1 is no record of an update (it is no object"),
    ("metrics.jsonl", '{"step": 1}\n{"a": 5}\n'): (READ, "line 2 is no record of an update"),
    ("metrics.jsonl", '{"step": "x"}\n'): (READ, "line 1 is no record of an update"),
    ("metrics.jsonl", "[" * 100_000 + "\n"): (READ, "line 1 is no record of an update"),
    (SCORES, "no JSON"): (EVERY[::2], "holds no scores that a run has written"),
    (SCORES, "[1]"): (EVERY[::2], "holds no scores that a run has written"),
    (SCORES, '{"prompts": ["a"]}'): (EVERY[::2], "Field required, at verdict"),
    (SCORES, json.dumps({"verdict": "b", "prompts": ["a"], "scores": BOTH})): (EVERY[::2], "no scores of b"),
    (SCORES, json.dumps({"verdict": "a", "prompts": ["a", "b"], "scores": BOTH})): (EVERY[::2], "for each prompt"),
}


@pytest.fixture(scope="module")
def finished(tiny_sd_factory, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished"), tiny_sd_factory())


def put(file, content):
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(("damage", "told"), DAMAGE.items(), ids=[f"{file} {str(text)[:20]}" for file, text in DAMAGE])
def test_what_is_damaged_is_named_in_one_line(finished, damage, told):
    file = finished / damage[0]
    before = file.read_bytes() if file.exists() else None
    put(file, damage[1])
    try:
        for command in told[0]:
            name, *options = command.split()
            done = CliRunner().invoke(app, [name, str(finished), *options])
            assert done.exit_code == 2 and done.stderr.count("\n") == 1, (command, done.output, done.exception)
            assert file.name in done.stderr and told[1] in done.stderr, done.stderr
            assert not (finished / "report.html").exists()
    finally:
        put(file, before)


FOUND = {
    '{"guard": 5}': "findings.guard",
    '{"guard": {"events": 5}}': "findings.guard.events",
    '{"guard": {"events": [{"update": 1}]}}': "findings.guard.events.0.event",
    '{"guard": {"recommended_strength": "x"}}': "findings.guard.recommended_strength",
    '{"guard": {"gain": {"mean": 1}}}': "findings.guard.gain.better",
    '{"guard": {"sweep": [1]}}': "findings.guard.sweep.0",
    '{"guard": {"sweep": [{"strength": 1, "score": 2}]}}': "a sweep without recommended_strength",
    '{"guard": {"seconds": "long"}}': "findings.guard.seconds",
    '{"guard": {"seconds": NaN}}': "NaN is no number of JSON",
}


@pytest.mark.parametrize(("findings", "where"), FOUND.items(), ids=list(FOUND))
def test_a_summary_whose_findings_cannot_be_read_is_named(tmp_path, findings, where):
    run = folder(tmp_path / "run")
    tree = json.loads((run / "summary.json").read_text()) | {"findings": "HERE"}
    (run / "summary.json").write_text(json.dumps(tree).replace('"HERE"', findings))
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, (done.output, done.exception)
    assert "summary.json: is no summary that a run has written" in done.stderr and where in done.stderr
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"method": 1}', "{", "\0", "NaN"])
def test_a_summary_that_is_none_is_named(tmp_path, text):
    run = folder(tmp_path / "run")
    (run / "summary.json").write_text(text)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, (done.output, done.exception)
    assert "summary.json: is no summary that a run has written" in done.stderr


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n", b""])
def test_a_picture_that_is_damaged_is_left_out_and_the_rest_is_shown(tmp_path, content):
    run = folder(tmp_path / "run")
    (run / evaluate.FOLDER / "0001-after.png").write_bytes(content)
    (run / "samples").mkdir()
    (run / "samples" / "step-000020.png").write_bytes(content)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.exception
    text = (run / "report.html").read_text()
    assert text.count("<img") == 3 and "0001-after.png cannot be read" in text
    assert "step-000020.png cannot be read" in text


@pytest.mark.parametrize(
    "tree", ["objective: draft\nmodel: sd\ntrain: {num_updates: many}\nrewards: 5", "", "model: 3"]
)
def test_a_run_whose_recipe_says_little_is_watched(tmp_path, tree):
    run = folder(tmp_path / "run")
    (run / "recipe.yaml").write_text(tree)
    done = CliRunner().invoke(app, ["watch", str(run), "--once"])
    assert done.exit_code == 0 and ("draft on sd" in done.stdout or "objective" not in tree), done.exception


def test_numbers_that_are_none_are_left_out_of_the_curves(tmp_path):
    run = folder(tmp_path / "run")
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n{"step": 3, "loss": 1}\n'
    )
    for command in (["watch", str(run), "--once"], ["report", str(run)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.exception

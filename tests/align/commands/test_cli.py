"""The command: what it lists, how it fails, and what it imports before it answers."""

import ast
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from align.commands.app import app
from align.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def command(
    *args: str, cwd: Path, code: str = "from align.__main__ import main; main()"
) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", code, *args]
    return subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


HEAVY = ("diffusers", "transformers", "peft", "torchvision", "open_clip", "scipy.stats", "matplotlib", "pyarrow")


def loaded(*args: str, cwd: Path, modules: tuple[str, ...]) -> tuple[subprocess.CompletedProcess, list[str]]:
    """The command, and which of the modules it has imported when it ends: what makes an answer slow, on any machine."""
    code = (
        "import sys\nfrom align.__main__ import main\n"
        f"try: main()\nfinally: print([m for m in {modules!r} if m in sys.modules], file=sys.stderr)"
    )
    done = command(*args, cwd=cwd, code=code)
    *said, last = done.stderr.splitlines()
    done.stderr = "\n".join(said)
    return done, ast.literal_eval(last)


def test_help_answers_at_once_and_imports_no_torch(tmp_path):
    done, found = loaded("--help", cwd=tmp_path, modules=("torch", "numpy", "accelerate", "pydantic.v1", *HEAVY))
    assert done.returncode == 0 and "train" in done.stdout and found == []


def test_a_wrong_recipe_is_refused_before_the_heavy_imports(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {name: sd}\nobjective: draft\nrewards: {brightness: {wieght: 3}}\n")
    done, found = loaded("train", "bad.yaml", cwd=tmp_path, modules=HEAVY)
    assert done.returncode == 2 and not done.stdout and found == []
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "data",
        "model.checkpoint",
        "rewards.brightness.wieght",
    ]


@pytest.mark.parametrize("module", ["align.commands.app", "torch"])
def test_ctrl_c_during_the_imports_is_a_word_and_no_traceback(tmp_path, module):
    code = (
        "import sys\nfrom align.__main__ import main\nclass Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\nmain()"
    )
    done = command("train", "draft/shapes", "--dry-run", cwd=tmp_path, code=code)
    assert done.returncode == 130 and done.stderr == "interrupted\n" and not done.stdout


def test_the_collector_rests_while_a_recipe_is_read(monkeypatch):
    import align.config

    found = []
    monkeypatch.setattr(align.config, "load_recipe", lambda *_: found.append(gc.isenabled()) or 1 / 0)
    CliRunner().invoke(app, ["train", "draft/shapes"])
    assert found == [False] and gc.isenabled()


def test_every_list(tmp_path, monkeypatch):
    run = CliRunner().invoke
    recipes = run(app, ["recipes"])
    assert recipes.exit_code == 0 and "draft/shapes " in recipes.stdout
    assert all(line.split(None, 1)[1] for line in recipes.stdout.splitlines()), "each says what it is"
    rewards = run(app, ["rewards"])
    assert {line.split()[0] for line in rewards.stdout.splitlines()} >= {"clip", "brightness", "python", "judge"}
    assert "ViT" not in run(app, ["models"]).stdout and "sd" in run(app, ["models"]).stdout
    one = run(app, ["rewards", "clip"])
    assert "form" in one.stdout and "default 'cosine'" in one.stdout
    unknown = run(app, ["rewards", "clop"])
    assert unknown.exit_code == 2 and 'Did you mean "clip"' in unknown.stderr
    everything = run(app, ["components"]).stdout
    assert all(f"{kind}:" in everything for kind in ("models", "objectives", "rewards", "data", "hooks"))
    block = run(app, ["components", "train"])
    assert "num_updates" in block.stdout and "micro_batch_size" in block.stdout, "blocks have settings too"
    assert 'Did you mean "draft"?' in run(app, ["components", "drafft"]).stderr


def test_an_argument_that_is_no_text_is_one_line(monkeypatch, capsys):
    """A shell hands over bytes; those that are not UTF-8 come as halves of pairs, which no file can be written with."""
    from align.__main__ import main

    monkeypatch.setattr("sys.argv", ["align", "sample", "draft/shapes", "caf\udce9"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("argument 3: is not UTF-8 text") and said.count("\n") == 1


@pytest.mark.parametrize(("code", "left"), [(0, 1), (None, 1), (2, 0), (130, 0)])
def test_processes_end_together_where_all_went_well(monkeypatch, code, left):
    """After a failure of its own a process waits for nobody: the others may be in the middle of something."""
    from align import __main__, sharding

    def ends() -> None:
        raise SystemExit(code)

    times = []
    monkeypatch.setattr("sys.argv", ["align", "recipes"])
    monkeypatch.setattr("align.commands.app.app", ends)
    monkeypatch.setattr(sharding, "leave", lambda: times.append(1))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == code and len(times) == left


def test_schema(tmp_path):
    printed = CliRunner().invoke(app, ["schema"])
    written = CliRunner().invoke(app, ["schema", "--output", str(tmp_path / "recipe.json")])
    assert printed.exit_code == written.exit_code == 0
    schema = json.loads(printed.stdout)
    assert schema == json.loads((tmp_path / "recipe.json").read_text())
    assert set(schema["required"]) == {"model", "objective", "data"}
    described = schema["properties"]["sampling"]
    assert described["description"]
    refused = CliRunner().invoke(app, ["schema", "-o", str(tmp_path / "recipe.json" / "recipe.json")])
    assert refused.exit_code == 2 and "recipe.json" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_package_that_hides_ours_is_named(tmp_path):
    """One that was imported before ours could be found."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").touch()
    done = command(
        "recipes",
        cwd=tmp_path,
        code=f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.append("
        f"{str(ROOT)!r}); import rewards; from align.__main__ import main; main()",
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"rewards: the package of this name that Python finds is {tmp_path / 'rewards'}")


def test_interrupts_and_user_errors(monkeypatch):
    import align.config

    def raising(error):
        def load(*args, **kwargs):
            raise error

        return load

    for error, code in ((KeyboardInterrupt(), 130), (UserError("it is so"), 2)):
        monkeypatch.setattr(align.config, "load_recipe", raising(error))
        result = CliRunner().invoke(app, ["train", "draft/shapes"])
        assert result.exit_code == code and "Traceback" not in result.output
    assert result.stderr == "it is so\n"
    monkeypatch.setenv("ALIGN_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(app, ["train", "draft/shapes"]).exception, UserError)


@pytest.fixture
def tiny_recipe(tmp_path, tiny_sd_factory) -> Path:
    tiny_sd_factory().save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"name": "sd", "checkpoint": str(tmp_path / "model")},
        "objective": {"name": "draft", "num_noises": 1},
        "data": {"name": "prompts", "prompts": ["a", "b"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 3, "last_k": 2},
        "train": {"num_updates": 2, "batch_size": 4, "micro_batch_size": 2},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "tiny.yaml"


def test_the_plan_counts_what_training_then_counts(tiny_recipe):
    """One rehearsed micro-batch against the summary of a real run of the same recipe."""
    from align.reports.summary import read

    planned = CliRunner().invoke(app, ["train", str(tiny_recipe), "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert not (tiny_recipe.parent / "run").exists()
    lines = dict(line.split(None, 1) for line in planned.stdout.splitlines() if not line.startswith("network"))
    assert "TFLOP an update; less than a minute" in lines["time"]
    assert lines["trainable"].startswith("0.0") and lines["memory"].startswith("about")
    (calls,) = [line for line in planned.stdout.splitlines() if line.startswith("network calls")]
    run = CliRunner().invoke(app, ["train", str(tiny_recipe)])
    assert run.exit_code == 0, run.output
    summary = read(tiny_recipe.parent / "run")
    rows, equivalents = summary.network_calls // 2, summary.forward_equivalents // 2
    assert f"{rows} rows an update" in calls and f"{equivalents} forward-equivalents" in calls


def test_the_plan_without_the_models_configs(tmp_path):
    recipe = {"model": {"name": "sd", "checkpoint": "owner/name"}, "objective": "draft", "rewards": {"brightness": {}}}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(recipe | {"data": {"name": "prompts", "prompts": ["a"]}}))
    planned = CliRunner().invoke(app, ["train", str(tmp_path / "far.yaml"), "--dry-run"])
    assert planned.exit_code == 0 and "the configs of owner/name are neither cached nor to be had" in planned.stdout

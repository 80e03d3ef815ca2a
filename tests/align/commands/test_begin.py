"""A first recipe: which exist for a checkpoint, and three questions that write one."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from align.commands.app import app
from align.commands.begin import GOALS, recipe
from align.commands.fitting import family, fitting
from align.config import load_recipe
from align.errors import UserError
from align.plan import plan
from align.registry import MODELS

PUBLISHED = [
    (name, one.checkpoint) for name in MODELS.names() for one in getattr(MODELS.get(name), "published", ())
]  # fmt: skip


def test_recipes_for_a_checkpoint_are_those_of_its_family():
    sdxl = fitting("stabilityai/stable-diffusion-xl-base-1.0")
    assert sdxl[0].same and {"draft/sdxl_lightning", "diffusion_dpo/sdxl"} <= {fit.name for fit in sdxl}
    assert not {"draft/shapes", "draft/sd15_lcm"} & {fit.name for fit in sdxl}
    sd = {fit.name for fit in fitting("stable-diffusion-v1-5/stable-diffusion-v1-5")}
    assert "draft/sd15_hpsv2" in sd and not any("shapes" in name for name in sd), "its rewards see that world alone"
    shapes = fitting("embedded:shapes-sd")
    assert "draft/shapes" in {fit.name for fit in shapes if fit.same}
    assert "draft/sd15_lcm" in {fit.name for fit in shapes if not fit.same}, "a family's recipe takes its checkpoints"


def test_a_folder_is_known_by_its_index(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert family(str(tmp_path)) == "flux"
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(UserError, match=r"^--model .*no family is made for a WanPipeline"):
        family(str(tmp_path))


def test_the_list_says_how_the_others_take_it():
    done = CliRunner().invoke(app, ["recipes", "--model", "embedded:shapes-sd"])
    assert done.exit_code == 0 and "the others take it with model.checkpoint=embedded:shapes-sd" in done.stdout


@pytest.mark.parametrize(("name", "checkpoint"), PUBLISHED)
def test_a_recipe_is_written_for_every_published_checkpoint(tmp_path, name, checkpoint):
    text = recipe(checkpoint, name, "people", 16)
    assert len(text.splitlines()) <= 30 and text.count("#") > 6
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load_recipe(tmp_path / "mine.yaml")
    assert loaded.train.micro_batch_size == 1 and loaded.model.checkpoint_blocks  # type: ignore[attr-defined]
    assert set(loaded.rewards) & set(loaded.hooks["guard"].rewards) == set()  # type: ignore[attr-defined]
    assert loaded.model.text_on_cpu, "as the preset of 16 GB has it"  # type: ignore[attr-defined]


def test_what_was_answered_is_what_the_recipe_is_made_for(tmp_path):
    (tmp_path / "mine.yaml").write_text(recipe("black-forest-labs/FLUX.1-dev", "flux", "people", 24))
    loaded = load_recipe(tmp_path / "mine.yaml")
    assert loaded.model.quantize == "int8" and loaded.model.offload_text  # type: ignore[attr-defined]
    assert all(reward.offload for reward in loaded.rewards.values())  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"--gpu-memory 10GB: .* does not fit"):
        recipe("black-forest-labs/FLUX.1-dev", "flux", "people", 10)


@pytest.mark.parametrize("goal", [*GOALS, "mine.py:warmth"])
def test_three_answers_make_a_recipe_that_dry_runs(tmp_path, monkeypatch, goal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def warmth(images, prompts):\n    return images.mean((1, 2, 3))\n")
    done = CliRunner().invoke(app, ["init"], input=f"embedded:shapes-sd\n{goal}\n24\n")
    assert done.exit_code == 0 and "align train mine.yaml --dry-run" in done.stdout, done.output
    loaded = load_recipe("mine.yaml")
    if goal == "people":  # the others differ in rewards alone, which a plan does not build
        said = plan(load_recipe(loaded, ["train.batch_size=1", "train.micro_batch_size=1", "sampling.num_steps=1"]))
        assert "unknown" not in said and "memory" in said
    again = CliRunner().invoke(app, ["init", "--model", "embedded:shapes-sd", "--goal", goal, "--gpu-memory", "24"])
    assert again.exit_code == 2 and "there is something already" in again.stderr


def test_what_is_written_to_a_file_makes_the_folders_above_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    answers = ["--model", "embedded:shapes-sd", "--goal", "people", "-o", "new/of init/mine.yaml"]
    done = CliRunner().invoke(app, ["init", *answers])
    assert done.exit_code == 0 and "align train 'new/of init/mine.yaml' --dry-run" in done.stdout, done.output
    for command in ("schema -o new/a/s.json", "score a.png --reward brightness --prompts x -o new/b/s.csv"):
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0 and Path(command.split()[-1]).is_file(), done.output


@pytest.mark.parametrize("command", ["init --model embedded:shapes-sd --goal people -o", "schema -o"])
def test_a_place_that_cannot_be_a_file_is_refused_in_the_same_words(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("file").write_text("")
    for place, said in (("folder.yaml", "is a folder. Name a file in it."), ("file/a.yaml", "file is no folder")):
        done = CliRunner().invoke(app, [*command.split(), place])
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.output


def test_a_goal_that_is_none_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "--model", "embedded:shapes-sd", "--goal", "money", "--gpu-memory", "8"])
    assert done.exit_code == 2 and "Choose people, prompt, beauty" in done.stderr and not list(tmp_path.iterdir())


def test_what_is_not_asked_and_what_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init"], input="embedded:shapes-sd\nmine.py:warmth\n")
    assert done.exit_code == 0 and "GPU memory" not in done.stdout, "any machine holds the embedded model"
    assert "mine.py is not there yet: write it before you train" in done.stdout
    done = CliRunner().invoke(app, ["init", "--model", "embedded:shapes-sd", "--goal", "beauty", "-o", "b.yaml"])
    assert done.exit_code == 0 and "no reward that looks past the prompt" in done.stdout


def test_an_answer_that_cannot_be_taken_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["init"], input="sdxl\nstabilityai/stable-diffusion-xl-base-1.0\nmoney\n\nlots\n24GB\n"
    )
    assert done.exit_code == 0, done.output
    assert 'is a family, not a checkpoint. Did you mean "stabilityai/stable-diffusion-xl-base-1.0"?' in done.stderr
    assert "money: is not known. Choose people" in done.stderr and "lots: is no size" in done.stderr
    assert "next:  align train mine.yaml --dry-run --gpu-memory 24 " in done.stdout
    assert "pickscore" in load_recipe("mine.yaml").rewards, "an empty answer is the one in brackets"


def test_where_nobody_answers_the_option_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init"], input="stabilityai/stable-diffusion-xl-base-1.0\n")
    assert done.exit_code == 2 and done.stderr == "--goal: is not given, and nobody answers. Give it.\n"
    assert not list(tmp_path.iterdir())

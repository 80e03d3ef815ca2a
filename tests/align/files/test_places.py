"""A model's own files in a recipe: a run names them whole, and so is opened, taken up again and told from anywhere."""

from pathlib import Path

import pytest
import yaml

import align
from align.config import load_recipe
from align.files import places
from align.share import publish
from align.training.resume import changed

RECIPE = {
    "model": {"name": "sd", "checkpoint": "models/mine"},
    "objective": "draft",
    "data": {"name": "prompts", "prompts": ["a star"]},
    "rewards": {"jpeg": {}},
    "sampling": {"num_steps": 1, "guidance_scale": 1.0},
    "train": {"num_updates": 1, "batch_size": 1},
    "adapter": {"rank": 2},
    "evaluate": {"prompts": ["a star", "a cat"], "num_prompts": 2, "num_pictures": 2},
    "output": "runs/a",
}


@pytest.fixture
def home(tiny_sd_factory, tmp_path, monkeypatch):
    tiny_sd_factory().save_pretrained(tmp_path / "home" / "models" / "mine")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_only_what_leads_somewhere_is_made_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("models/mine", "owner", "fp16"):
        Path(name).mkdir(parents=True)
    Path("models/lcm.safetensors").write_bytes(b"")
    model = {
        "name": "fp16",
        "variant": "fp16",
        "checkpoint": "models/mine",
        "network": "owner/name:net.safetensors",
        "base_adapter": "./models:lcm.safetensors",
        "config_dir": None,
    }
    found = places.whole({"model": model, "output": "models/mine"})
    made = {"checkpoint": f"{tmp_path}/models/mine", "base_adapter": f"{tmp_path}/models:lcm.safetensors"}
    assert found == {"model": model | made, "output": "models/mine"} and places.whole(found) == found
    for checkpoint in ("embedded:shapes-sd", "owner/name", "~/models/mine", "/models/mine", ""):
        assert places.whole({"model": {"checkpoint": checkpoint}}) == {"model": {"checkpoint": checkpoint}}
    assert places.whole({"model": "sd"}) == {"model": "sd"} and places.whole({}) == {}


def test_a_run_on_a_relative_folder_opens_from_anywhere(home, tmp_path, monkeypatch):
    run = align.train(RECIPE)
    written = yaml.safe_load(Path("runs/a/recipe.yaml").read_text())
    assert written["model"]["checkpoint"] == str(home / "models/mine")
    assert align.train(RECIPE).report == run.report, "the same command is the same recipe"
    assert str(home) not in Path("runs/a/adapter/README.md").read_text()
    assert run.report.model == "sd models/mine"
    monkeypatch.chdir(tmp_path)
    opened = align.Run(home / "runs/a")
    assert opened.pipeline()("a star", num_inference_steps=1).images
    for file in publish.compose(home / "runs/a", "me/mine"):
        if not file.name.endswith((".png", ".safetensors")):
            assert "models/mine" not in file.content.decode() and str(home) not in file.content.decode(), file.name


def test_a_run_recorded_by_its_relative_folder_is_the_same_recipe(home, tmp_path):
    tree = load_recipe(RECIPE).dump()
    assert not list(changed(tree, places.whole(tree)))
    other = places.whole(tree) | {"model": tree["model"] | {"checkpoint": str(tmp_path / "home/models/other")}}
    assert [key for key, *_ in changed(tree, other)] == ["model.checkpoint"]
    (run := home / "runs" / "old").mkdir(parents=True)
    (run / "recipe.yaml").write_text(load_recipe(RECIPE).yaml())
    assert load_recipe(run).model.checkpoint == str(home / "models/mine"), "and beside newer ones it is of their model"


def test_a_file_that_is_named_by_its_folder_is_cut_too():
    text = "/data/secret/lcm:lcm.safetensors"
    assert [publish._last(place) for place in publish._places(text)] == ["lcm:lcm.safetensors", "lcm"]

"""Pulling from a small Hub: three files and no more, a recipe that names code refused, images as before publishing."""

from importlib import import_module

import pytest
import yaml
from hub_server import Repository
from run_toys import finished_run
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe
from align.recipes import names
from align.share.pull import code_in

REPO = "me/my-adapter"


def align(*args, code=0):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return done


@pytest.fixture
def published(hub, tiny_sd_factory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished_run(tmp_path, tiny_sd_factory())
    align("publish", run, "--repo", REPO)
    hub.repositories[REPO].files |= {"evil.py": b"1/0", "pytorch_model.bin": b"a pickle"}
    hub.repositories[REPO].files |= {"../../evil.py": b"1/0", "adapter/../../../evil.py": b"1/0", "/evil.py": b"1/0"}
    return run


def set_recipe(hub, change):
    files = hub.repositories[REPO].files
    recipe = yaml.safe_load(files["recipe.yaml"])
    change(recipe)
    files["recipe.yaml"] = yaml.safe_dump(recipe).encode()


def test_three_files_come_and_draw_the_same_images(hub, published, tmp_path):
    assert align("pull", REPO).stdout.strip() == "pulled/my-adapter"
    folder = tmp_path / "pulled" / "my-adapter"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"recipe.yaml", "adapter/README.md", "adapter/pytorch_lora_weights.safetensors"}
    assert not [*tmp_path.rglob("evil*")], "and none by a name that leads elsewhere"
    # The base model is a folder that the published recipe names by its last part only; here it lies beside.
    for source, output in ((folder, "theirs"), (published, "mine")):
        align("sample", source, "a red circle", "-o", output)
    assert (tmp_path / "theirs" / "0000.png").read_bytes() != b""
    pictures = [(tmp_path / name / "0000.png").read_bytes() for name in ("theirs", "mine")]
    assert pixels(pictures[0]) == pixels(pictures[1])
    align("sample", folder, "a red circle", "--strength", 0, "-o", "base")
    assert pixels((tmp_path / "base" / "0000.png").read_bytes()) != pixels(pictures[0])
    align("pull", REPO)  # again, over itself


def pixels(png):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()


CODE = [
    ("rewards", {"mine": {"name": "evil.py:Reward"}}, "rewards.mine.name: evil.py:Reward"),
    ("rewards", {"mine": {"name": "python", "function": "evil.py:reward"}}, "rewards.mine.function: evil.py:reward"),
    ("objective", "evil:Method", "objective: evil:Method"),
    ("hooks", {"metrics": {"trackers": ["evil:Tracker"]}}, "hooks.metrics.trackers.0: evil:Tracker"),
    ("model", {"name": "/a folder/evil.py:Model", "checkpoint": "a/b"}, "evil.py:Model"),
]


@pytest.mark.parametrize(("key", "value", "said"), CODE)
def test_a_recipe_that_names_code_is_refused_and_nothing_is_written(hub, published, tmp_path, key, value, said):
    set_recipe(hub, lambda recipe: recipe.update({key: value}))
    done = align("pull", REPO, code=2)
    assert said in done.stderr and "--trust-recipe" in done.stderr
    assert not (tmp_path / "pulled").exists()
    align("pull", REPO, "--trust-recipe")
    assert (tmp_path / "pulled" / "my-adapter" / "recipe.yaml").is_file()


def test_no_recipe_of_ours_is_taken_for_code():
    for name in names():
        assert not list(code_in(load_recipe(name, on_disk=False).dump())), name


def test_what_is_no_adapter_is_refused(hub, published, tmp_path):
    hub.repositories["me/other"] = Repository(files={"README.md": b"", "pytorch_model.bin": b"a pickle"})
    assert "holds no pytorch_lora_weights.safetensors" in align("pull", "me/other", code=2).stderr
    hub.repositories["me/cut"] = Repository(files={"pytorch_lora_weights.safetensors": b"not tensors"})
    assert "not a safetensors file that is whole" in align("pull", "me/cut", code=2).stderr
    assert "no such repository or revision" in align("pull", "me/nowhere", code=2).stderr
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_refuses_or_limits_is_one_line_and_nothing_is_written(hub, published, tmp_path, status):
    hub.failing["info"] = [status] * 9
    said = align("pull", REPO, code=2).stderr
    assert "the Hub cannot be reached" in said and str(status) in said and "The same command goes on" in said
    assert not (tmp_path / "pulled").exists()


def test_a_hub_that_does_not_answer_is_one_line(hub, published, tmp_path, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    client = import_module(type(get_session()).__module__.partition(".")[0])  # httpx, under one name or another

    def slow(*_, **__):
        raise client.ReadTimeout("the read operation timed out")

    monkeypatch.setattr(HfApi, "model_info", slow)
    assert "the Hub cannot be reached (the read operation timed out)" in align("pull", REPO, code=2).stderr
    assert not (tmp_path / "pulled").exists()


def test_without_a_token_a_missing_repository_is_not_blamed_on_the_token(hub, published, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no such repository, or it is not public" in align("pull", "me/nowhere", code=2).stderr
    align("pull", REPO)


def test_a_folder_of_other_things_is_left_alone(hub, published, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "holds something else already" in align("pull", REPO, "-o", "mine", code=2).stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_offline_is_said(hub, published, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so the Hub is not asked" in align("pull", REPO, code=2).stderr

"""What the world does to a run: a reward that breaks at one update, a picture that vanishes, a place that cannot be
written, names in archives and repositories that lead elsewhere, a clock that goes backwards. Each ends in a line."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import align
from align.data._store import TensorStore
from align.data.captioned import Captioned, CaptionedConfig
from align.errors import UserError
from align.run import Run
from rewards import RewardError

ROOT = Path(__file__).parents[2]
REWARD = """
from pathlib import Path
calls = 0

def judged(images, prompts):
    global calls
    calls += images.shape[-1] < 64  # those before the model is loaded are of 64 pixels
    total = images.mean((1, 2, 3))
    if calls < 3 or (Path(__file__).parent / "mended").exists():
        return total
    {how}
"""
BREAKS = {
    "return total * float('nan')": "returned nan for image 0 of 1",
    "return total / 0": "returned inf for image 0 of 1",
    "raise ValueError('no such colour')": "ValueError: no such colour",
}


@pytest.fixture(scope="module")
def sd_folder(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd_factory().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(sd_folder, tmp_path):
    return {
        "model": {"name": "sd", "checkpoint": str(sd_folder)},
        "objective": {"name": "draft"},
        "data": {"name": "prompts", "prompts": ["a red star"]},
        "rewards": {"brightness": {}},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0, "last_k": 1},
        "train": {"num_updates": 3, "batch_size": 1, "checkpoint_every": 1},
        "output": str(tmp_path / "run"),
    }


@pytest.mark.parametrize("how", BREAKS)
def test_a_reward_that_breaks_at_the_third_update_leaves_two_and_the_same_command_goes_on(recipe, tmp_path, how):
    (tmp_path / "reward.py").write_text(REWARD.format(how=how))
    recipe["rewards"] = {"own": {"name": "python", "function": f"{tmp_path / 'reward.py'}:judged"}}
    with pytest.raises((UserError, RewardError)) as found:
        align.train(recipe)
    assert BREAKS[how] in str(found.value) and "\n" not in str(found.value).strip()
    folder = tmp_path / "run"
    assert [path.name for path in sorted((folder / "checkpoints").glob("step-*"))] == ["step-000001", "step-000002"]
    assert not (folder / "adapter").exists() and not (folder / "summary.json").exists()
    for copy in {tmp_path, *(path.parent for path in folder.rglob("reward*.py"))}:
        (copy / "mended").touch()
    assert [record["step"] for record in align.train(recipe).metrics][-1] == 3
    assert (Run(folder).output / "adapter").is_dir()


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_trained(recipe, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    recipe["output"] = str(tmp_path / place)
    with pytest.raises(
        UserError, match=r"output: .*file.* cannot be written: .*Not a directory. Choose another folder"
    ):
        align.train(recipe)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_picture_that_vanishes_during_the_run_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "a.png", "caption": "black"}) + "\n")
    batch = next(iter(Captioned(CaptionedConfig(folder=str(tmp_path)), batch_size=2, seed=0)))
    assert batch.images().shape == (2, 3, 8, 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(RewardError, match=r"a\.png: .*") as found:
        batch.images()
    assert "\n" not in str(found.value)


def test_a_shard_of_the_cache_that_vanishes_during_the_run_is_named(tmp_path):
    TensorStore(tmp_path).write({"a": {"x": torch.zeros(2)}})
    store = TensorStore(tmp_path)
    store.scan()
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(UserError, match=r"\.safetensors: .*while the run was reading it\. Start it again") as found:
        store.read("a")
    assert "\n" not in str(found.value)


WALL = re.compile(r"\btime\.time(_ns)?\(|\b(date|datetime)\.(now|utcnow|today)\(")


def test_no_result_depends_on_the_clock_on_the_wall():
    """A clock that goes backwards, or a machine that wakes up in another year: durations are of monotonic clocks."""
    files = [path for room in ("align", "rewards", "samplers") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 200 and not [path for path in files if WALL.search(path.read_text())]
    assert WALL.search("x = time.time() - began") and WALL.search("datetime.datetime.now()")
    assert not WALL.search("time.monotonic()")

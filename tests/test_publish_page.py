"""Every command and code block of docs/howto/publish.md runs, in order, on a short run of the embedded world."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import align
from align.commands.app import app
from align.config import load_recipe
from align.models._pipeline import PipelineModel
from align.registry import MODELS

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "publish.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (align .*)$", PAGE, re.MULTILINE)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("hub")
def test_the_page_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"train.num_updates": 2, "evaluate.num_prompts": 4, "evaluate.num_pictures": 4, "hooks": {}}
    small |= {"train.batch_size": 2, "sampling.num_steps": 2, "sampling.last_k": 1, "output": "runs/draft-shapes"}
    align.train("draft/shapes", **small)
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}: {done.output}"
    look = {p.relative_to("look").as_posix() for p in Path("look").rglob("*.*")}
    table = PAGE.split("## From the Hub")[0]
    listed = {
        name for row in re.findall(r"^\| (`.*`) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    files = {f"{name.partition('/')[0]}/" if "/" in name else name for name in look}
    assert files == listed
    assert load_recipe("pulled/draft-shapes") == load_recipe(
        "runs/draft-shapes", {"output": load_recipe("pulled/draft-shapes").output}
    )
    assert [kind for kind, _ in BLOCKS] == ["python"]
    names = {}
    exec(BLOCKS[0][1], names)
    assert names["image"].size == (32, 32)
    card = yaml.safe_load(Path("look/README.md").read_text().split("---\n")[1])
    assert {m["name"] for m in card["model-index"][0]["results"][0]["metrics"]} >= {"pick before", "gold after"}


def test_the_formats_table_lists_the_families_that_have_them():
    named = {
        "SD 1.x and 2.x": "sd", "SDXL": "sdxl", "FLUX.1": "flux", "SD3": "sd3", "PixArt": "pixart",
        "Qwen-Image": "qwen_image", "Z-Image": "z_image", "Krea 2": "krea2",
    }  # fmt: skip
    rows = {f: next(line for line in PAGE.splitlines() if line.startswith(f"| `{f}`")) for f in ("kohya", "comfyui")}
    said = {format: {family for words, family in named.items() if words in row} for format, row in rows.items()}
    said["comfyui"] |= said["kohya"]  # "the same, and"
    families = {name: MODELS.get(name) for name in MODELS.names()}
    for format, known in said.items():
        found = {n for n, f in families.items() if issubclass(f, PipelineModel) and format in f.layouts}
        assert found == known

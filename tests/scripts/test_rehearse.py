"""A rehearsal at a small fraction: written as published, trained, loaded by the stock pipeline, exported."""

import json
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from align.models._real_size import find

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SANA = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def writer():
    return runpy.run_path(str(SCRIPTS / "bench" / "random_pipeline.py"))


def test_a_fraction_is_of_layers_and_widths_and_the_whole_is_what_was_published(writer):
    known = find(SD15)
    assert known is not None
    network, text = known[1].network, dict(known[1].text)["text_encoder"][1]
    assert writer["shrunk"](network, Fraction(1)) == dict(network)
    small = writer["shrunk"](network, Fraction(1, 10))
    assert small["block_out_channels"] == (32, 64, 128, 128) and small["sample_size"] == 8
    assert writer["shrunk"](text, Fraction(1, 6))["num_hidden_layers"] == 2
    assert writer["shrunk"](text, Fraction(1, 6))["hidden_size"] == text["hidden_size"]


def test_a_pipeline_lists_what_its_class_takes(writer):
    """SDXL's takes no safety checker, and a folder that lists one cannot be built from its index."""
    names = {checkpoint: set(writer["absent"](find(checkpoint)[0])) for checkpoint in (SD15, SDXL, SANA)}
    assert names == {SD15: set(writer["ABSENT"]), SDXL: {"feature_extractor", "image_encoder"}, SANA: set()}


def test_a_checkpoint_that_is_not_listed_is_a_line(writer, tmp_path):
    with pytest.raises(SystemExit, match="someone/else: its configs are not known"):
        writer["write"]("someone/else", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_last_sign_of_a_text_stands_where_clip_looks_for_it(writer):
    tokenizer = writer["_clip_tokenizer"]()
    ids = tokenizer("a red star").input_ids
    assert (ids[0], ids[-1], len(tokenizer)) == (49406, 49407, 49408)
    assert max(ids[1:-1]) < 49406


def test_the_page_has_a_line_a_rehearsal(tmp_path):
    script = runpy.run_path(str(SCRIPTS / "bench" / "rehearsal_page.py"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script['BEGIN']}\nstale\n{script['END']}\nafter\n")
    row = {
        "recipe": "draft/a",
        "settings": ["x=1"],
        "fraction": "1",
        "dtype": "float32",
        "machine": "M",
        "millions": 859.5,
    }
    row |= {
        "seconds": [181.2, 170.0],
        "peak_gib": 11.94,
        "training_gib": 11.3,
        "planned_gib": 11.2,
        "adapter_tensors": 256,
        "moved": 128,
    }
    script["write"]([row | {"drawn": True, "exports": ["kohya", "peft"]}], page)
    text = page.read_text()
    assert (
        "| `draft/a x=1`, float32; M | 860 | 181, 170 | 11.3 | 11.2 | 11.9 | 256 tensors, 128 moved, loaded; draws |"
        in text
    )
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text


@pytest.mark.slow
def test_a_recipe_is_rehearsed(tmp_path):
    words = ["sampling.num_steps=2", "train.batch_size=1", "train.micro_batch_size=1"]
    command = [sys.executable, "-P", str(SCRIPTS / "rehearse.py"), "draft/sd15_hpsv2", "--fraction", "1/20", *words]
    done = subprocess.run([*command, "--keep", str(tmp_path / "kept")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found["outcomes"] == ["applied"]
    assert found["adapter_tensors"] == 256 and found["moved"] > 100 and found["drawn"]
    assert 0 < found["training_gib"] < found["peak_gib"] and found["peak_gib"] > 0.3
    assert found["exports"] == ["kohya", "comfyui", "peft"]
    index = json.loads((tmp_path / "kept" / "pipeline" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and index["scheduler"][1] == "PNDMScheduler"
    again = subprocess.run([*command, "--keep", str(tmp_path / "kept")], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "there is something already" in again.stderr

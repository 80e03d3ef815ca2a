"""The benchmark of published sizes runs, at a tiny one."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "full_size.py"
NARROW = json.dumps({"block_out_channels": [32, 32, 32, 32]})


@pytest.mark.parametrize("quantize", [None, "torchao-int8"])
def test_both_methods_are_timed_and_their_flops_counted(quantize, monkeypatch, capsys):
    if quantize:
        pytest.importorskip("torchao")
    options = ["--device", "cpu", "--dtype", "float32", "--size", "64", "64", "--num-steps", "2", "--turns", "1"]
    options += ["--quantize", quantize] if quantize else []
    words = ["stable-diffusion-v1-5/stable-diffusion-v1-5", *options, "--network", NARROW, "--vae", NARROW]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--peak-tflops", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["method"] for row in found] == ["draft", "diffusion_dpo"]
    for row in found:
        assert row["share_of_peak"] == row["tflop"] / row["seconds"]
    assert found[0]["tflop"] > found[1]["tflop"] > 0  # the decoder, and a step more

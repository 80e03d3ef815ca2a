"""The benchmark of published sizes runs, at a tiny one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "full_size.py"
NARROW = json.dumps({"block_out_channels": [32, 32, 32, 32]})


@pytest.mark.parametrize("quantize", [None, "torchao-int8"])
def test_both_methods_are_timed_and_their_flops_counted(quantize):
    if quantize:
        pytest.importorskip("torchao")
    options = ["--device", "cpu", "--dtype", "float32", "--size", "64", "64", "--num-steps", "2", "--turns", "1"]
    options += ["--quantize", quantize] if quantize else []
    command = [sys.executable, "-P", str(SCRIPT), "stable-diffusion-v1-5/stable-diffusion-v1-5", *options]
    result = subprocess.run(
        [*command, "--network", NARROW, "--vae", NARROW, "--peak-tflops", "1"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-500:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["method"] for row in found] == ["draft", "diffusion_dpo"]
    for row in found:
        assert row["share_of_peak"] == row["tflop"] / row["seconds"]
    assert found[0]["tflop"] > found[1]["tflop"] > 0  # the decoder, and a step more

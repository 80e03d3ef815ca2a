"""Finished runs without training: a summary, and the folder that a run on a tiny model leaves behind."""

import json
from pathlib import Path
from typing import Any

import torch
from align_toys import randomise
from PIL import Image

from align.config import load_recipe
from align.figures.statistics import compare
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter
from align.reports import summary as summaries
from align.reports.summary import Summary
from align.share import card

SWEPT = [{"strength": 0.5, "score": 0.2}, {"strength": 0.75, "score": 0.31}]


def summary(**changes: Any) -> Summary:
    told = {
        "method": "draft", "model": "sd base", "seed": 0, "num_processes": 1, "num_updates": 60, "stopped": None,
        "chosen_update": 40, "report_prompts": "shapes:report", "trained_on": ["pick"], "seconds": 1.0,
        "seconds_per_update": 0.2, "network_calls": 1, "forward_equivalents": 3, "peak_rss_mib": 5.0,
        "peak_gpu_mib": None, "hardware": "a machine", "versions": {"torch": "2.6"},
        "scores": {n: compare(torch.zeros(4), torch.full((4,), gain)) for n, gain in (("pick", 1.0), ("gold", 0.5))},
        "findings": {"guard": {"recommended_strength": 0.75, "sweep": SWEPT}},
    }  # fmt: skip
    return Summary(**{**told, **changes})


def finished_run(folder: Path, pipeline: Any, checkpoint: str | None = None, **settings: Any) -> Path:
    """A run's folder FOLDER/my-run of `pipeline`, which is saved beside it unless `checkpoint` says where it is."""
    run = folder / "my-run"
    if checkpoint is None:
        pipeline.save_pretrained(checkpoint := str(folder / "base"))
    model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline)
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    randomise(adapter, scale=0.1)
    adapter.export(run / "adapter")
    tree = {
        "model": {"name": "sd", "checkpoint": checkpoint},
        "objective": "draft",
        "data": {"name": "prompts", "prompts": ["a red circle"]},
        "rewards": {"jpeg": {}},
        "sampling": {"num_steps": 3, "guidance_scale": 2.0},
        "adapter": {"rank": 2},
        "output": str(run),
    }
    recipe = load_recipe(tree, settings, on_disk=False)
    (run / "recipe.yaml").write_text(recipe.yaml())
    found = summary(model=f"sd {checkpoint}")
    (run / summaries.FILE_NAME).write_text(found.model_dump_json())
    card.write(run / "adapter", recipe, found)
    (run / "report").mkdir()
    prompts = ["a red circle", "two stars"]
    scores = {when: {"jpeg": [0.5, 1.0]} for when in ("before", "after")}
    (run / "report" / "scores.json").write_text(json.dumps({"verdict": "jpeg", "prompts": prompts, "scores": scores}))
    for number in range(2):
        for when, colour in (("before", "red"), ("after", "blue")):
            Image.new("RGB", (8, 8), colour).save(run / "report" / f"{number:04d}-{when}.png")
    Image.new("RGB", (16, 8)).save(run / "before_after.png")
    return run

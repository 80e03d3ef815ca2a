"""Two runs of a tiny Stable Diffusion with random adapters, for tests of evaluations."""

from pathlib import Path
from typing import Any

from align_toys import randomise

from align.config import load_recipe
from align.evaluation.plan import Plan, plan
from align.evaluation.results import Evaluation
from align.evaluation.run import Session
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter

PROMPTS = ["a red cat", "two blue dogs", "a green bird", "x", "seven stars"]


def make_runs(pipeline: Any, folder: Path) -> None:
    """FOLDER/model, FOLDER/one and FOLDER/two, and a table of prompts in two categories."""
    pipeline.save_pretrained(folder / "model")
    for number, name in enumerate(("one", "two")):
        model = StableDiffusion(SDConfig(checkpoint=str(folder / "model")))
        config = AdapterConfig(rank=2 + number)
        adapter = Adapter(config, model.network, list(model.lora_targets), seed=number)
        randomise(adapter, scale=0.1)
        adapter.export(folder / name / "adapter")
        tree = {
            "model": {"name": "sd", "checkpoint": str(folder / "model")},
            "objective": {"name": "draft", "num_noises": 1},
            "data": {"name": "prompts", "prompts": PROMPTS},
            "rewards": {"brightness": {}},
            "sampling": {"num_steps": 2, "guidance_scale": 2.0},
            "adapter": {"rank": 2 + number},
            "train": {"seed": 3},
            "evaluate": {"prompts": PROMPTS, "num_prompts": 5, "num_pictures": 2, "rewards": {"colourfulness": {}}},
        }
        (folder / name / "recipe.yaml").write_text(load_recipe(tree).yaml())
    rows = [f"{prompt},{'even' if number % 2 == 0 else 'odd'}" for number, prompt in enumerate(PROMPTS)]
    (folder / "prompts.csv").write_text("prompt,category\n" + "\n".join(rows) + "\n")


def planned(folder: Path, *systems: str, **options: Any) -> Plan:
    """A plan of these runs; batches of two prompts, so that five make three chunks."""
    options = {"prompts": str(folder / "prompts.csv"), "batch_size": 2, **options}
    return plan([system.replace("RUNS", str(folder)) for system in systems], **options)


def evaluated(folder: Path, output: Path, *systems: str, **options: Any) -> Evaluation:
    """What an evaluation of these runs finds."""
    found = Session(planned(folder, *systems, **options), output, lambda text: None).run()
    assert found is not None
    return found

"""The small runs that scripts/chaos.py kills, one for each method, and what two of them must have in common."""

import hashlib
import json
from pathlib import Path
from typing import Any

SMALL = ["train.num_updates=4", "train.checkpoint_every=1", "sampling.num_steps=2"]
REPORT = ["evaluate.num_prompts=4", "evaluate.num_pictures=4"]
PANEL = ["hooks.panel.num_prompts=2", "hooks.panel.every=2"]
PICTURES = ["hooks.samples.num_images=2", "hooks.samples.every=2"]
CHOICE = ["hooks.guard=false", "hooks.panel={prompts: 'shapes:select', rewards: {gold: {}}, best: gold}"]
PAIRS = ["data.make.num_prompts=8", "data.make.batch_size=8", "data.make.temperature=1"]
STEPS = ["data.num_prompts=2", "data.num_candidates=2", "data.first_step=1", "data.gap=0.001"]
STEPS += ["train.batch_size=2", "sampling.num_steps=3"]
GROUPS = ["data.group_size=2", "train.batch_size=4"]
METHODS: dict[str, list[str]] = {
    "draft": ["draft/shapes", "sampling.last_k=1", "train.batch_size=2", *CHOICE, *PANEL, *PICTURES, *SMALL, *REPORT],
    "diffusion_dpo": ["diffusion_dpo/shapes", "train.batch_size=2", *PAIRS, *PANEL, *PICTURES, *SMALL, *REPORT],
    "spo": ["spo/shapes", *STEPS, *PANEL, *PICTURES, *SMALL[:2], *REPORT],
    "nft": ["nft/shapes", "objective.num_draws=1", *GROUPS, *PANEL, *SMALL, *REPORT],
    "unlearn": ["unlearn/shapes", "objective.target=adversarial", "train.batch_size=4", *PANEL, *SMALL, *REPORT],
    "reno": ["--count", "2", "--seeds", "1", "--batch", "1", "--iterations", "3"],
}
"""The commands: `align reno` for the last, `align train` for the others; unlearn has two optimisers."""


def words(method: str, folder: Path) -> list[str]:
    """The command line of a run into `folder`."""
    if method == "reno":
        return ["reno", "--prompts", "shapes:report", *METHODS[method], "-o", str(folder)]
    made = [f"data.pairs={folder}-pairs", f"data.cache={folder}-cache"] if method == "diffusion_dpo" else []
    return ["train", *METHODS[method], *made, f"output={folder}"]


def result(folder: Path) -> dict[str, Any]:
    """What two runs must have in common, to the bit."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    if (folder / "images.jsonl").is_file():
        from PIL import Image
        from safetensors.torch import load_file

        pictures = {f.name: hashlib.sha256(Image.open(f).tobytes()).hexdigest() for f in sorted(folder.glob("*.png"))}
        noise = {f.name: load_file(f)["x_T"].tolist() for f in sorted(folder.glob("*.safetensors"))}
        return {"pictures": pictures, "noise": noise}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    last = max((folder / "checkpoints").glob("step-*"))
    return {
        "adapter": {f.name: digest(f) for f in sorted((folder / "adapter").glob("*.safetensors"))},
        "metrics": untimed(lines),
        "chosen": summary["chosen_update"],
        "scores": summary["scores"],
        "findings": untimed(summary["findings"]),
        "checkpoint": {f.name: digest(f) for f in sorted(last.glob("*.safetensors"))},
    }


def untimed(tree: Any) -> Any:
    """A tree without its seconds."""
    if isinstance(tree, list):
        return [untimed(value) for value in tree]
    return {k: untimed(v) for k, v in tree.items() if not k.endswith("seconds")} if isinstance(tree, dict) else tree

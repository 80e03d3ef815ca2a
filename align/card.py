"""The adapter's card, adapter/README.md: what it was trained on, what it reached, at which strength to use it."""

import json
from pathlib import Path
from typing import Any

from align.config import Recipe
from align.summary import Summary

FILE_NAME = "README.md"


def write(folder: Path, recipe: Recipe, found: Summary) -> Path:
    """Writes the card of a finished run into its adapter's folder."""
    path = folder / FILE_NAME
    path.write_text(text(recipe, found), encoding="utf-8")
    return path


def text(recipe: Recipe, found: Summary) -> str:
    """The card: metadata as the Hub reads it, then Markdown."""
    strength = recommended_strength(found)
    base = str(getattr(recipe.model, "checkpoint", found.model))
    rewards = ", ".join(f"{label} x {reward.weight:g}" for label, reward in recipe.rewards.items()) or "none"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: diffusers",
        "tags: [lora, text-to-image, diffalign]",
        "---",
        "",
        f"# {found.method} on {base}",
        "",
        f"LoRA, rank {recipe.adapter.rank}, trained by `{found.method}` on the rewards: {rewards}. {found.num_updates} "
        f"updates of {recipe.train.batch_size} samples; these are the parameters of update {found.chosen_update}."
        + (f" Ended early: {found.stopped}." if found.stopped else ""),
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(base)})",
        'pipeline.load_lora_weights("THIS_FOLDER", adapter_name="align")',
        f'pipeline.set_adapters("align", {strength:g})',
        "```",
        "",
        *_scores(found),
        *_sweep(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def recommended_strength(found: Summary) -> float:
    """What the guard recommends; 1 where no hook has tried."""
    said = [c["recommended_strength"] for c in found.findings.values() if "recommended_strength" in c]
    return float(said[0]) if said else 1.0


def _scores(found: Summary) -> list[str]:
    if not found.scores:
        return []
    lines = [
        f"Before and after at strength 1, on prompts that nothing was chosen on ({found.report_prompts}), at the same "
        "seeds, with 95 % intervals:",
        "",
        "| score | trained on | before | after | change |",
        "|---|---|---|---|---|",
    ]
    for label, score in found.scores.items():
        trained = "yes" if label in found.trained_on else "no"
        lines.append(f"| {label} | {trained} | {score.before.mean:.4f} | {score.after.mean:.4f} | {score.difference} |")
    return [*lines, ""]


def _sweep(found: Summary) -> list[str]:
    swept: list[dict[str, Any]] = [entry for c in found.findings.values() for entry in c.get("sweep", ())]
    if not swept:
        return []
    tried = ", ".join(f"{entry['strength']:g}: {entry['score']:+.3f}" for entry in swept)
    return [
        f"Recommended strength: {recommended_strength(found):g}. Score on held-out rewards by strength, in standard "
        f"deviations of the base's: {tried}."
    ]

"""The card of a learned solver: what it is, for which model, how it is used, what it was."""

import json
from pathlib import Path

from markupsafe import Markup

from align.config import Recipe
from align.figures import pages
from align.reports.summary import Summary
from align.sampling import solver

SOLVER = solver.FILE_NAME
LEARNED_WITH = {"guidance_scale", "guidance_interval", "guidance", "negative_prompt"}


def text(recipe: Recipe, found: Summary, folder: Path) -> str:
    """Markdown; no metadata of the Hub, since it is no adapter. Its blocks draw as the solver was learned."""
    learned = solver.read(str(folder))
    guided = recipe.sampling.model_dump(mode="json", include=LEARNED_WITH, exclude_defaults=True)
    settings = {"num_steps": learned.num_steps, "guidance_scale": recipe.sampling.guidance_scale} | guided
    if "guidance" in guided:  # it says the scale
        del settings["guidance_scale"]
    settings["solver"] = f"PATH_OF/{SOLVER}"
    return pages.page(
        "solver_card.md",
        learned=learned,
        call=Markup(", ".join(f"{key}={value!r}" for key, value in settings.items())),
        block=Markup("\n".join(f"  {key}: {json.dumps(value)}" for key, value in settings.items())),  # a line each
        base=getattr(recipe.model, "checkpoint", ""),
        found=found,
        batch_size=recipe.train.batch_size,
    )

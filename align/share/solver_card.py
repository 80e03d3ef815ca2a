"""The card of a learned solver: what it is, for which model, how it is used, what it was."""

from pathlib import Path

from align.config import Recipe
from align.figures import pages
from align.reports.summary import Summary
from align.sampling import solver

SOLVER = solver.FILE_NAME


def text(recipe: Recipe, found: Summary, folder: Path) -> str:
    """Markdown; no metadata of the Hub, since it is no adapter."""
    return pages.page(
        "solver_card.md",
        learned=solver.read(str(folder)),
        base=getattr(recipe.model, "checkpoint", ""),
        found=found,
        batch_size=recipe.train.batch_size,
        file=SOLVER,
    )

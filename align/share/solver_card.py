"""The card of a learned solver: what it is, for which model, how it is used, what it was."""

from pathlib import Path

from align.config import Recipe
from align.reports.summary import Summary
from align.sampling import solver

SOLVER = solver.FILE_NAME


def text(recipe: Recipe, found: Summary, folder: Path) -> str:
    """Markdown; no metadata of the Hub, since it is no adapter."""
    learned = solver.read(str(folder))
    times = ", ".join(f"{t:.4f}" for t in learned.times)
    lines = [
        f"# A solver of {learned.num_steps} steps for {getattr(recipe.model, 'checkpoint', '')}",
        "",
        f"{learned.num_steps + len(learned.below)} numbers: times and step coefficients, learned in "
        f"{found.num_updates} updates of {recipe.train.batch_size} images with {learned.guidance}. The network is "
        "unchanged. For this model, number of steps and guidance; elsewhere it is not tried.",
        "",
        "```yaml",
        "sampling:",
        f"  num_steps: {learned.num_steps}",
        f"  solver: PATH_OF/{SOLVER}",
        "```",
        "",
        "```python",
        "from align.sampling import SamplingConfig, rollout  # diffusers has no such steps",
        f'sampling = SamplingConfig(num_steps={learned.num_steps}, solver="PATH_OF/{SOLVER}")',
        "```",
        "",
        f"Times, 1 is pure noise: {times}.",
        "",
        f"Seed {found.seed}; {found.hardware}; {found.seconds:.0f} s; {found.network_calls:,} rows of network calls.",
    ]
    return "\n".join(lines) + "\n"

"""What noise optimisation reaches beside best of n at equal cost, put into docs/lab/reno.md."""

from pathlib import Path

from scripts.marked import put

FOLDER = "reno"
SAID = "`align reno --seeds 1 --compare` by the recipe `reno/shapes`, report prompts; no weight changes."


def write(output: Path, page: Path) -> Path | None:
    """The page with the table that `align reno --compare` has left; None where there is none."""
    table = output / FOLDER / "table.md"
    if not table.is_file():
        return None
    put(page, "compare.py", f"{SAID}\n\n{table.read_text(encoding='utf-8')}")
    return page

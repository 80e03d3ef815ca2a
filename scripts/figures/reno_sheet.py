"""Draw a folder of `align reno` as start and end side by side: python scripts/figures/reno_sheet.py FOLDER OUT.png

docs/img/reno.png shows all twelve of
    align reno "a red circle left of a blue square" "two yellow stars" "a red circle and a blue square" --seed 1
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main(folder: Path, out: Path) -> None:
    """Four images a row, each with the judge's verdict before and after."""
    from align.figures.picture import Cell, sheet

    def cell(file: Path, title: str, scores: dict[str, float]) -> Cell:
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255
        passed = bool(scores["judge"])
        return Cell(pixels, title, f"judge: {'yes' if passed else 'no'}", passed)

    groups = []
    for line in (folder / "images.jsonl").read_text().splitlines():
        told = json.loads(line)
        file = folder / told["file"]
        start = cell(file.with_name(f"{file.stem}-start.png"), "start", told["start"])
        groups.append((told["prompt"], [start, cell(file, "ReNO", told["best"])]))
    sheet(groups, columns=4).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

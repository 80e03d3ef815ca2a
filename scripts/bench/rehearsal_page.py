"""What scripts/rehearse.py measured, as a table: python scripts/bench/rehearsal_page.py ROWS.jsonl [PAGE]"""

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lab" / "performance.md"
BEGIN, END = "<!-- written by scripts/bench/rehearsal_page.py -->", "<!-- end rehearsals -->"
TITLES = [
    "recipe, settings",
    "M of the network",
    "s an update",
    "training, GiB",
    "planned, GiB",
    "peak, GiB",
    "adapter",
    "exported as",
]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a rehearsal."""
    lines = [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    for row in rows:
        given = " ".join([row["recipe"], *row["settings"]])
        part = "" if row["fraction"] == "1" else f", {row['fraction']} of the size"
        trained, planned = (
            "-" if row.get(f"{name}_gib") is None else f"{row[f'{name}_gib']:.1f}" for name in ("training", "planned")
        )
        drew = "draws" if row["drawn"] else "draws no numbers"
        adapter = f"{row['adapter_tensors']} tensors, {row['moved']} moved, loaded; {drew}"
        cells = [f"`{given}`, {row['dtype']}{part}; {row['machine']}", f"{row['millions']:.0f}"]
        cells += [", ".join(f"{s:.0f}" for s in row["seconds"]), trained, planned, f"{row['peak_gib']:.1f}", adapter]
        lines.append(f"| {' | '.join(cells)} | {', '.join(row['exports'])} |")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], page: Path) -> None:
    """The table between its marks in the page."""
    old = page.read_text(encoding="utf-8")
    page.write_text(f"{old[: old.index(BEGIN)]}{BEGIN}\n{table(rows)}\n{old[old.index(END) :]}", encoding="utf-8")


if __name__ == "__main__":
    told = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    write(told, Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE)

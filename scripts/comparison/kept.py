"""What a page keeps of itself where the runs that it was written from are on another machine: rows of its table,
sections, and their parts of the verdict."""

import json
import re
from collections.abc import Container, Sequence
from pathlib import Path

FIGURE = "\n*Drawn before the newest rows of the table: some are in the table alone, some have moved since.*\n"
"""Below a figure that could not be drawn anew."""
COUNTED = re.compile(r"([\d,]+) ((?:report|select) prompts)")


def text(page: Path) -> str:
    """The page as it is; empty where there is none."""
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def cells(row: str) -> list[str]:
    """Of a row of a table, "| a | b |"."""
    return [cell.strip() for cell in row.strip()[1:-1].split("|")]


def table(told: str) -> list[str]:
    """The rows of a page's first table."""
    found = re.search(r"^\|(?:---\|)+\n((?:\|.*\n)*)", told, re.MULTILINE)
    return found[1].splitlines() if found else []


def rows(told: str, known: Container[str], renewed: Container[str]) -> dict[str, str]:
    """{first cell: row} of the first table's rows that are of a known name and are not renewed."""
    named = {cells(row)[0]: row for row in table(told)}
    return {name: row for name, row in named.items() if name in known and name not in renewed}


def lines(file: Path, names: Container[str]) -> dict[str, dict[str, Sequence[tuple[float, float]]]]:
    """{axis: {name: points}} of these names, from a file of what was drawn before; empty where there is none."""
    told = json.loads(text(file) or "{}")
    return {
        axis: {name: [(x, y) for x, y in points] for name, points in series.items() if name in names}
        for axis, series in told.items()
    }


def mean(cell: str) -> float:
    """Of what `curves.over_seeds` says."""
    return float(cell.strip("*").split("*")[0].split()[0])


def alone(cell: str) -> str:
    """A word where what `curves.over_seeds` says is of one seed."""
    return "" if "[" in cell else " (one seed)"


def apart_from_none(cell: str) -> bool:
    """Whether the interval of what `curves.over_seeds` says leaves 0 out; one seed has none."""
    edges = re.search(r"\[(\S+), (\S+)\]", cell)
    return edges is not None and float(edges[1]) * float(edges[2]) > 0


def sections(told: str) -> dict[str, str]:
    """{name: section} of those that begin with "## name" or "## name: more", without the empty lines around."""
    parts = re.split(r"^(?=## )", told, flags=re.MULTILINE)[1:]
    return {part[3:].partition("\n")[0].partition(":")[0]: part.strip("\n") for part in parts}


def verdict(told: str) -> dict[str, str]:
    """{name: part} of a verdict "name: this; other: that."."""
    found = re.search(r"^\*\*Verdict\.\*\* (.*?)\.\n\n", told, re.MULTILINE | re.DOTALL)
    parts = re.split(r";\s", found[1]) if found else []
    return {part.partition(":")[0]: part for part in parts}


def same_prompts(page: Path, old: str, new: str) -> None:
    """Ends the program where the page says, above its table, other numbers of prompts than the page that would take
    its place."""
    heads = [told.partition("\n|")[0] for told in (old, new)]
    before, now = ({what: count for count, what in COUNTED.findall(head)} for head in heads)
    for what in before.keys() & now.keys():
        if before[what] != now[what]:
            raise SystemExit(
                f"{page}: its rows are of {before[what]} {what}, and the runs found here of {now[what]}, which cannot "
                f"stand beside them. Measure with as many, or write another --page."
            )

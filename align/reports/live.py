"""A run while it trains, read from its folder alone: a page, and lines for a terminal. Nothing is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from align import recipes
from align.errors import UserError
from align.figures import pages
from align.files.near import near
from align.hooks import metrics
from align.reports import curves, summary
from align.reports.curves import Records
from align.source import Source
from rewards._numerals import counted

BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 48  # blocks of a curve in a terminal


@dataclass(frozen=True)
class Live:
    """What its folder says of a run now."""

    output: Path
    recipe: str
    tree: dict[str, Any]
    records: Records
    finished: bool

    @property
    def title(self) -> str:
        """The method and the model."""
        method, model = self._block("objective"), self._block("model")
        return f"{method.get('name')} on {model.get('checkpoint', model.get('name'))}"

    @property
    def total(self) -> int:
        """Updates that the recipe asks for; 0 where it does not say."""
        said = self._block("train").get("num_updates")
        return said if isinstance(said, int) else 0

    @property
    def trained_on(self) -> list[str]:
        """The labels of the rewards."""
        return list(self._block("rewards"))

    def _block(self, key: str) -> dict[str, Any]:
        """A block of the recipe, whose short form is a name."""
        said = self.tree.get(key)
        return said if isinstance(said, dict) else {"name": said} if isinstance(said, str) else {}

    @property
    def where(self) -> str:
        """What follows the updates; "" while they are made."""
        done = bool(self.records) and self.records[-1]["step"] >= self.total
        return "finished" if self.finished else "the updates are done; what is reported is drawn" if done else ""

    def facts(self) -> dict[str, str]:
        """{what: value}."""
        done = self.records[-1]["step"] if self.records else 0
        total = self.total
        seconds = [p for _, p in curves.series(self.records, "seconds")][-20:]
        each = sum(seconds) / len(seconds) if seconds else 0.0
        facts = {f"of {counted(total, 'update')}": str(done)}
        if each:
            facts["s an update"] = f"{each:.2f}"
        if each and done < total and not self.finished:
            facts["left"] = _time((total - done) * each)
        if reward := curves.series(self.records, "reward/total"):
            facts["reward"] = f"{reward[-1][1]:.4g}"
        return facts


def look(run: str | Path) -> Live:
    """The run in a folder; a UserError says what is missing."""
    output = Path(run).expanduser()
    file = output / recipes.RECIPE
    if not output.is_dir():
        raise UserError(f"{run}: there is no such folder.{near(output)} Give the folder of a run.")
    if not file.is_file():
        raise UserError(f"{run}: there is no {recipes.RECIPE} in it: it is no run's folder, or the run has not begun.")
    tree, text = Source.read(file).tree, file.read_text(encoding="utf-8", errors="replace")
    records = metrics.read(output / metrics.FILE_NAME)
    return Live(output, text, tree, records, (output / summary.FILE_NAME).is_file())


def page(live: Live, every: int) -> str:
    """HTML that loads itself again every so many seconds until the run is finished."""
    ended = f"Finished: {live.output / 'report.html'} says what was reached."
    note = ended if live.finished else f"{live.where.capitalize()}." if live.where else ""
    last = live.records[-1]["step"] if live.records else 0
    return pages.page(
        "watch.html",
        title=live.title,
        run=live.output.name,
        every=0 if live.finished else every,
        facts=live.facts(),
        note=note,
        training=curves.training(live.records, live.trained_on, {}),
        sheets=curves.sheets(live.output, last)[::-1][:4],  # the latest first
        guard=curves.guard(live.records, {}),
        gradients=curves.gradients(live.records),
        recipe=live.recipe,
    )


def lines(live: Live) -> Iterator[str]:
    """The same for a terminal: numbers, and a curve of blocks for what is trained on and what is held out."""
    yield f"{live.title}   {live.output}" + (f"   {live.where}" if live.where else "")
    yield "   ".join(f"{value} {name}" for name, value in live.facts().items())
    shown = {"loss": curves.series(live.records, "loss")}
    for prefix in ("reward/", "panel/", "guard/"):
        shown |= {f"{prefix}{label}": points for label, points in curves.beginning(live.records, prefix).items()}
    width = max(map(len, shown))
    for name, points in shown.items():
        if points:
            yield f"{name:<{width}}  {_blocks([y for _, y in points])}  {points[0][1]:.4g} -> {points[-1][1]:.4g}"


def _blocks(values: list[float]) -> str:
    """Means over as many equal stretches as a line holds, from the lowest to the highest."""
    number = min(WIDE, len(values))
    edges = [round(i * len(values) / number) for i in range(number + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, scale = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (mean - low) / scale)] for mean in means)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

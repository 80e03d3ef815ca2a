"""report.html of noise optimisation: each image before and after with path and scores, and the table, in one file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from align.files.output import write as write_file
from align.noise import table as reno_table
from align.noise.files import Outcome
from align.reports.page import STYLE

FILE_NAME = "report.html"
MOST = 64  # images shown


def write(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """FOLDER/report.html from the images and lines that are there."""
    cards = "".join(_card(folder, outcome) for outcome in outcomes[:MOST])
    found = reno_table.table(outcomes)
    compared = f"<section><h2>At equal cost</h2><pre>{escape(found)}</pre></section>" if found else ""
    title = f"{outcomes[0].method} on {outcomes[0].model}" if outcomes else "no images"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}"
        "img{image-rendering:pixelated;width:256px;max-width:100%}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{compared}<section><h2>Images</h2>"
        f'<div class="cards">{cards}</div></section></main></body></html>\n'
    )
    return write_file(folder / FILE_NAME, page)


def _card(folder: Path, outcome: Outcome) -> str:
    path = folder / outcome.file
    files = {"plain sampling": path.with_name(f"{path.stem}-start.png"), outcome.method: path}
    files |= {"the path": path.with_suffix(".gif")} if path.with_suffix(".gif").is_file() else {}
    pictures = "".join(
        f'<img alt="{escape(name)}" title="{escape(name)}" '
        f'src="data:image/{file.suffix[1:]};base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for name, file in files.items()
    )
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td>{outcome.start[label]:.3f}</td><td>{score:.3f}</td></tr>"
        for label, score in outcome.best.items()
        if label in outcome.start
    )
    head = "<tr><th>score</th><th>plain sampling</th><th>chosen</th></tr>"
    told = f"the best of {outcome.iterations} at {outcome.iteration}, seed {outcome.seed}, image {outcome.index}"
    return (
        f'<figure class="card"><figcaption>{escape(outcome.prompt)}</figcaption>{pictures}'
        f"<table>{head}{rows}</table><p>{escape(told)}</p></figure>"
    )

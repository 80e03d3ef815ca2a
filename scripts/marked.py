"""Puts what a script measured into a page, between the two marks that name the script."""

from pathlib import Path

END = "<!-- end -->"


def put(page: Path, script: str, text: str) -> None:
    """Replaces what stands in `page` between `<!-- written by SCRIPT -->` and the end mark that follows."""
    begin = f"<!-- written by {script} -->"
    before, _, rest = page.read_text().partition(begin)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no place for this: {begin} ... {END}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{END}{after}")

"""The pages of the documentation, cut into code blocks, links and inline commands."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPEN = re.compile(r"^```(\w*)(.*)$")
TITLE = re.compile(r'title="([^"]+)"')
NAMED = re.compile(r"^# ([\w./-]+\.\w+)$")


@dataclass(frozen=True)
class Block:
    """A code block. `language` is "" for an indented one; `title` the file that it is, where it says so: by
    title="my_rewards.py" on its fence, or by a first line `# my_rewards.py`."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All Markdown files at the root and under docs/, by their path in the repository."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, source: str | None = None) -> list[Block]:
    """In their order. Lines indented by four spaces are a block too, unless they go on with an item of a list."""
    found: list[Block] = []
    lines = (text(page) if source is None else source).splitlines()
    number, item = 0, False
    while number < len(lines):
        line = lines[number]
        start = number + 1
        if fence := OPEN.match(line):
            end = next(n for n in range(start, len(lines)) if lines[n].startswith("```"))
            body = lines[start:end]
            title = TITLE.search(fence[2]) or (NAMED.match(body[0]) if body else None)
            found.append(Block(page, start, fence[1], title[1] if title else None, "\n".join(body) + "\n"))
            number = end + 1
            continue
        if line.startswith("    ") and not item and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(
                Block(page, start, "", None, "\n".join(entry[4:] for entry in lines[number:end]).rstrip() + "\n")
            )
            number = end
            continue
        if line.strip():
            item = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (item and line.startswith(" "))
        number += 1
    return found


def written(page: str, folder: Path) -> None:
    """Writes the files that a page's blocks are."""
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """The targets of links and images that are no URLs."""
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"[a-z]+:", t)]


def anchors(page: str) -> set[str]:
    """What headings can be linked by, as GitHub and the site make it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}

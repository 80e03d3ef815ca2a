"""A hook of mkdocs: the pages that live at the root of the repository, as pages of the site.

docs/ is the site's root: `docs/howto/guard.md` there is `howto/guard.md` here, and `../CONTRIBUTING.md` is
`contributing.md`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Adds them under their names in lower case."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave docs/ for one of them stay in the site."""
    links = re.compile(rf"\]\(\.\./((?:\.\./)*)({'|'.join(map(re.escape, PAGES))})")
    return links.sub(lambda found: f"]({found[1]}{found[2].lower()}", markdown)

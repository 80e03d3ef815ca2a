"""Writes docs/reference/ from the code: python scripts/reference.py

Every block of a recipe, every component with its settings, every recipe, every command with its options. A test holds
the committed pages against what this writes, so that a setting without a page cannot be.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main(folder: Path = ROOT / "docs" / "reference") -> None:
    from scripts.handbook.pages import pages

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

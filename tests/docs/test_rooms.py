"""One can find one's way: every page is reached from the start, no method's page is long, the lab says its verdict."""

import re

import pytest
import yaml
from doc_pages import ROOT, links, pages, text

from align import recipes

METHODS = [page for page in pages() if page.startswith("docs/methods/")]
LAB = [page for page in pages() if page.startswith("docs/lab/")]
ROOMS = {"start", "models", "howto", "methods", "reference", "develop", "lab"}


def follow(page: str) -> set[str]:
    """The pages that `page` links to."""
    folder = (ROOT / page).parent
    found = ((folder / link.partition("#")[0]).resolve() for link in links(page) if link.partition("#")[0])
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix == ".md" and path.is_relative_to(ROOT)}


def clicks(start: str) -> dict[str, int]:
    """How many links lead from `start` to each page that can be reached."""
    found, ring = {start: 0}, [start]
    while ring:
        ring = [after for page in ring for after in follow(page) - found.keys() if (ROOT / after).is_file()]
        found |= dict.fromkeys(ring, max(found.values()) + 1)
        ring = list(dict.fromkeys(ring))
    return found


def test_every_page_is_reached_from_the_start():
    lost = {page for page in pages() if page.startswith("docs/")} - clicks("docs/index.md").keys()
    assert not lost, "link to it from the index of its room"


def test_no_page_is_far():
    assert max(number for page, number in clicks("docs/index.md").items() if page.startswith("docs/")) <= 2


def test_an_rtx_4090_and_sdxl_are_one_click_from_their_command():
    row = next(line for line in text("docs/index.md").splitlines() if "RTX 4090" in line and "SDXL" in line)
    target = re.search(r"\]\((.+?)#on-a-card-of-24-gb\)", row)
    assert target and target[1] == "models/sdxl.md"
    below = text("docs/models/sdxl.md").partition("## On a card of 24 GB\n")[2].lstrip()
    assert below.startswith("```bash\nalign train draft/sdxl_lightning ")


def test_the_menu_has_every_page_once():
    def leaves(tree):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from [value] if isinstance(value, str) else leaves(value)

    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"]
    named = list(leaves(nav))
    assert len(named) == len(set(named))
    assert {f"docs/{name}" for name in named} >= {page for page in pages() if page.startswith("docs/")}


def test_pages_stand_in_rooms():
    rooms = {page.split("/")[1] for page in pages() if page.startswith("docs/")} - {"index.md"}
    assert rooms == ROOMS


@pytest.mark.parametrize("page", METHODS)
def test_a_methods_page_is_short_and_whole(page):
    lines = text(page).splitlines()
    assert len(lines) <= 60, "what was tried on the way belongs into docs/lab/"
    if page.endswith("index.md"):
        return
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## When, and when not", "## The command", "## What we measured"]
    measured = text(page).partition("## What we measured\n")[2].strip().splitlines()
    assert len(measured) <= 5 and "../lab/" in "".join(measured)
    pictures = sum(line.startswith("![") for line in lines)
    assert pictures == 1 or (pictures == 0 and measured[0].startswith("Nothing yet")), "one picture"


def test_every_objective_that_is_a_method_has_its_page():
    written = {page.rsplit("/", 1)[1].removesuffix(".md") for page in METHODS} - {"index"}
    assert written == {name.partition("/")[0] for name in recipes.names()} - {"spm"}, "spm: on spo.md"


@pytest.mark.parametrize("page", LAB)
def test_a_page_of_the_lab_opens_with_its_verdict(page):
    title, empty, *rest = text(page).splitlines()
    verdict = rest[: rest.index("")]
    assert title.startswith("# ") and not empty
    assert verdict[0].startswith("**Verdict.** ") and len(verdict) <= 2


def test_the_readme_is_short_and_says_its_status_first():
    lines = text("README.md").splitlines()
    assert len(lines) <= 120
    status = next(number for number, line in enumerate(lines) if line.startswith("**Status.**"))
    assert status < 14 and "No published weights have been run here" in "\n".join(lines[status : status + 3])


def test_the_readmes_table_names_recipes_and_all_methods():
    """Each cell is a recipe; each recipe of a published model is in a cell."""
    rows = [line for line in text("README.md").splitlines() if line.startswith("| ") and "docs/methods" not in line]
    found = {name for row in rows for name in re.findall(r"`(\w+/\w+)`", row) if not name.startswith("align/")}
    assert found <= recipes.names().keys()
    missing = {name for name in recipes.names() if "shapes" not in name and "/any" not in name} - found
    assert missing <= {"spm/sd15"}, "spm/sd15 is the judge of spo/sd15"
    heads = "".join(
        line for line in text("README.md").splitlines() if line.startswith("|") and "](docs/methods" in line
    )
    assert all(f"({page})" in heads for page in METHODS if not page.endswith("index.md"))

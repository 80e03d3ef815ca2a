"""The site builds from mkdocs.yml without a warning, and every page is on it."""

import logging
from pathlib import Path

import pytest
from doc_pages import ROOT, pages

pytest.importorskip("mkdocs", reason='needs the extra: pip install "diffalign[docs]"')
pytest.importorskip("material", reason='needs the extra: pip install "diffalign[docs]"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # a warning is an error
    return folder


def test_every_page_is_on_the_site(site):
    for page in pages():
        if page == "README.md":
            continue  # index.md stands for it
        path = Path(page.lower()) if "/" not in page else Path(page).relative_to("docs")
        html = path.with_suffix("") / "index.html" if path.stem != "index" else path.with_suffix(".html")
        assert (site / html).is_file(), page


def test_files_show_their_names_and_links_stay_inside(site):
    reward = (site / "howto" / "own_reward" / "index.html").read_text(encoding="utf-8")
    assert '<span class="filename">my_rewards.py</span>' in reward
    assert 'href="../../contributing/"' in reward
    assert "CONTRIBUTING.md" not in (site / "index.html").read_text(encoding="utf-8").split("<article")[1]


def test_nothing_is_fetched_from_elsewhere(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis" not in html and "cdn." not in html

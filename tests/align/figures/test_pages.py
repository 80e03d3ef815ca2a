"""The pages' templates: what is put in is text, and a name that is missing is an error."""

import re

import pytest
from jinja2 import UndefinedError
from PIL import Image

from align.figures import pages
from align.noise import report
from align.noise.files import Outcome

NASTY = '<img src=x onerror="alert(1)">'


def test_every_template_is_whole_and_fetches_nothing():
    for path in pages.TEMPLATES.iterdir():
        text = path.read_text(encoding="utf-8")
        linked = set(re.findall(r'(?:<link rel="stylesheet" href|<script src)="([\w.]+)"', text))
        assert linked <= ({"style.css", "vote.css", "vote.js"} if path.name == "vote.html" else set())
        own = re.sub(r"<link[^>]+>|<script src[^>]+>", "", text) if linked else text
        assert not re.search(r"https?://|@import|<link|src=\"(?!data)|\|\s*safe", own), path.name
        if path.suffix in (".html", ".md"):
            pages._environment(markdown=path.suffix == ".md").get_template(path.name)


def test_a_markdown_template_escapes_what_is_put_in():
    from jinja2 import DictLoader
    from markupsafe import Markup

    made = pages._environment(markdown=True).overlay(loader=DictLoader({"x.md": "| {{ a }} | {{ b }} | {{ 2 }} |"}))
    said = made.get_template("x.md").render(a="[x](y)\n| <b>*", b=Markup("[0.1, 0.2]"))
    assert said == r"| \[x\](y) \| \<b\>\* | [0.1, 0.2] | 2 |"


def test_a_value_that_is_missing_is_no_blank():
    with pytest.raises(UndefinedError, match="title"):
        pages.page("base.html")


def outcome(**changes) -> Outcome:
    told = {
        "index": 0, "prompt": NASTY, "file": "0.png", "method": "reno", "model": "sd <tiny>", "seed": 0,
        "rewards": {"clip": 1.0}, "start": {"clip": 0.1, "total": 0.1}, "best": {"clip": 0.3, "total": 0.3},
        "iteration": 2, "iterations": 3, "seconds": 1.0, "forward_equivalents": 9.0, "settings": "x",
    }  # fmt: skip
    return Outcome(**{**told, **changes})


def test_noise_optimisation_names_its_pictures_and_its_winner(tmp_path):
    for name in ("0.png", "0-start.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.gif")
    text = report.write(tmp_path, [outcome()]).read_text()
    assert NASTY not in text and "&lt;img src=x onerror=" in text
    assert [*re.findall(r"<span>(plain sampling|reno, better|the path)</span>", text)] == [
        "plain sampling",
        "reno, better",
        "the path",
    ]
    assert "+0.200" in text and text.count("src=") == text.count('src="data:image/') + 1  # that of the prompt, as text
    lost = report.write(tmp_path, [outcome(best={"clip": 0.1, "total": 0.1})]).read_text()
    assert "better<" not in lost and 'class="good"' not in lost
    assert "no images" in report.write(tmp_path, []).read_text()


def test_noise_optimisation_shows_its_way(tmp_path):
    for name in ("0.png", "0-start.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    text = report.write(tmp_path, [outcome(path=[0.1, 0.2, 0.3, None])]).read_text()
    assert sorted(re.findall(r"<title>(\d: [\d.]+|update \d.*?)</title>", text)) == [
        "0: 0.1",
        "1: 0.2",
        "2: 0.3",
        "update 2: the best",
    ]
    assert 'class="chart"' not in report.write(tmp_path, [outcome()]).read_text(), "best-of has none"


def test_a_comparison_is_tables_and_pictures_have_their_size(tmp_path):
    """No Markdown in a page, and no page that jumps while its pictures are read."""
    for name in ("0.png", "0-start.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    scores = {"clip": 0.2, "total": 0.2, "candidates": 3.0}
    both = [outcome(baselines={"seconds": scores, "forwards": scores})] * 2
    text = report.write(tmp_path, both).read_text()
    assert "|---" not in text and "<th>best of n, same seconds</th>" in text and "best of n drew 3" in text.lower()
    assert text.count('width="8" height="6"') == text.count('src="data:image/') == 4


def test_what_an_interval_says_in_words_may_break(tmp_path):
    macros = pages._environment(markdown=False).get_template("parts.html").module
    assert 'class="said"' in macros.number("0.1", "too few for an interval, below 4")  # pyright: ignore
    assert "said" not in macros.number("0.1", "+0.0 to +0.2") + macros.number("0.1", "[0, 1]")  # pyright: ignore

"""The page of an evaluation: whole in one file, its numbers, its charts, and what a browser makes of its grid."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from align.evaluation.arms import Arm
from align.evaluation.benchmarks import Item
from align.evaluation.charts import Mark, by_strength, fidelity
from align.evaluation.files import Chunk, Folder
from align.evaluation.page import PAGE, _sweeps, page
from align.evaluation.results import Evaluation, Measured, against, baseline, lines
from align.evaluation.statistics import gains
from align.figures.statistics import Interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ITEMS = [Item("a <red> circle", "colour"), Item("two stars & a sun", "number"), Item("a star", "colour")]
GAINS = (0.2, -0.3, 0.5)  # of the three prompts at strength 1


class Page(HTMLParser):
    """The words and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


def made(path, strengths=(0.5, 1.0)):
    """An evaluation of made-up scores and grey images, its page written."""
    folder, before = Folder(path), torch.tensor([[0.1, 0.3], [0.6, 0.6], [0.2, 0.0]])
    arms = [Arm("base"), *(Arm(f"mine x {s:g}", {"mine": s}) for s in strengths)]
    measured = []
    for arm, strength in zip(arms, (0.0, *strengths), strict=True):
        scores = {
            "proxy": before + strength * torch.tensor(GAINS)[:, None],
            "gold": before - 0.1 * strength,
        }
        small = torch.full((3, 2, 3, 4, 4), 0.5)
        small[:, 1] = 0.5 + 0.25 * (1 - strength / 2)
        small += strength / 10
        folder.save_images(arm, Chunk(0, ITEMS), torch.full((3, 2, 3, 8, 8), 0.5))
        measured.append(Measured(arm=arm, scores=scores, small=small, drift=strength if strength else None))
    found = Evaluation(
        model="sd somewhere",
        sampling="ddim",
        seed=0,
        prompts="mine.txt",
        num_prompts=3,
        num_images=2,
        categories={"colour": 2, "number": 1},
        trained_on=["proxy"],
        baseline=baseline(measured[0], ITEMS),
        arms=[against(measured[0], one, ITEMS) for one in measured[1:]],
        num_processes=1,
        hardware="a <machine>",
        versions={"torch": "2"},
    )
    return found, folder.write(PAGE, page(found, measured, ITEMS, folder))


def test_what_is_measured_on_images_has_closed_forms(tmp_path):
    """Two flat images of levels a and b lie |a - b| apart; one moved by c lies c from where it was."""
    found, _ = made(tmp_path)
    half, whole = found.arms
    assert found.baseline.diversity is not None and whole.diversity is not None
    assert found.baseline.diversity.mean == pytest.approx(0.25)
    assert whole.diversity.after.mean == pytest.approx(0.125)
    assert whole.diversity.difference.mean == pytest.approx(-0.125)
    # image 0 moves by 0.1, image 1 by 0.1 - 0.125
    assert whole.change.mean == pytest.approx((0.1 + 0.025) / 2)
    assert half.scores["proxy"].difference.mean == pytest.approx(0.5 * sum(GAINS) / 3)
    assert whole.scores["proxy"].win_rate == pytest.approx(2 / 3)
    assert whole.categories["number"]["proxy"].difference.mean == pytest.approx(-0.3)
    assert whole.categories["colour"]["proxy"].difference.mean == pytest.approx(0.35)
    assert whole.categories["colour"]["proxy"].num_prompts == 2 and whole.drift == 1.0


def test_the_page_is_whole_and_says_what_was_found(tmp_path):
    found, path = made(tmp_path)
    text = path.read_text()
    read = Page(text)
    sources = [a["src"] for tag, a in read.tags if tag == "img"]
    assert len(sources) == 9 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text), "nothing is fetched"
    words = " ".join(read.words)
    gain = found.arms[1].scores["proxy"].difference
    for said in ("2 arms against base", "mine x 0.5", f"{gain.mean:+.4f}", gain.within("+.4f", " to ")):
        assert said in words
    for said in (
        "Strength",
        "Reward and fidelity",
        "By category",
        "a <red> circle",
        "two stars & a sun",
        "a <machine>",
    ):
        assert said in words
    cards = [a for tag, a in read.tags if tag == "figure" and "data-scores" in a]
    assert [a["data-category"] for a in cards] == ["colour", "number", "colour"]
    assert json.loads(cards[2]["data-scores"])[2] == {"proxy": pytest.approx(0.7), "gold": pytest.approx(0.1)}


def test_many_arms_are_folded_under_one_table(tmp_path):
    found, path = made(tmp_path, strengths=(0.25, 0.5, 0.75, 1.0))
    read = Page(path.read_text())
    assert sum(tag == "details" for tag, _ in read.tags) == 8  # gains and categories of four arms
    assert len(found.arms) == 4 and "change, 95 %" in read.words


def test_one_arm_has_no_sweep_and_no_front(tmp_path):
    _, path = made(tmp_path, strengths=(1.0,))
    words = Page(path.read_text()).words
    assert "mine x 1 against base" in words and "Strength" not in words and "Reward and fidelity" not in words


def interval(mean):
    return Interval(mean=mean, low=mean - 1, high=mean + 1)


def test_the_front_joins_what_no_other_beats():
    marks = [
        Mark(c, interval(g), f"arm {c:g}", f"arm {c:g}") for c, g in ((0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (3.0, 3.0))
    ]
    drawn = fidelity(marks, x_label="x", y_label="y")
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert re.findall(r"<circle [^>]*fill: var\(--(\w+)\)", drawn) == ["c0", "c0", "card", "c0"]
    assert xs == sorted(xs) and len(set(xs)) == 4, "cost grows to the right"
    (line,) = re.findall(r'<path d="([^"]*)" style="fill: none; stroke: var\(--c0\)', drawn)
    assert len(re.findall(r"[ML] ", line)) == 3
    labels = re.findall(r">(arm \d)</text>", drawn)
    assert labels == ["arm 0", "arm 1", "arm 3"], "only the front is labelled"
    close = [Mark(1.0, interval(1.0), "a", "a"), Mark(1.0001, interval(1.0001), "b", "b")]
    assert len(re.findall(r">[ab]</text>", fidelity(close, x_label="x", y_label="y"))) == 1


def test_the_band_is_the_interval():
    drawn = by_strength({"a & b": [(0.0, interval(0.0)), (1.0, interval(2.0))]})
    (band,) = re.findall(r'<path d="([^"]*) z[ ]*" style="fill: var\(--c0\)', drawn)
    ys = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", band)]
    assert ys[0] < ys[3] and ys[1] < ys[2] and "a &amp; b" in drawn
    assert ys[3] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_sorts_and_filters_the_grid(tmp_path):
    """What the controls do, as the page's own script does it: the document after they were used."""
    _, path = made(tmp_path)

    def after(actions):
        using = "".join(
            f'control("{name}").value = "{value}"; control("{name}").dispatchEvent(new Event("input"));'
            for name, value in actions.items()
        )
        told = (
            "document.title = JSON.stringify(cells.filter((cell) => !cell.hidden).map((cell) => [cell.dataset.place, "
            '[...cell.querySelectorAll("b")].map((b) => b.textContent), '
            '[...cell.querySelectorAll("div > div")].map((box) => box.className)]));'
        )
        tried = tmp_path / "tried.html"
        tried.write_text(path.read_text().replace("</script>", f"{using}{told}</script>"))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run([str(CHROMIUM), *flags, tried.as_uri()], capture_output=True, text=True, timeout=300)
        return json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1).replace("&lt;", "<"))

    assert [place for place, *_ in after({})] == ["0", "1", "2"]
    best = after({"score": "proxy", "order": "-2"})
    assert [place for place, *_ in best] == ["2", "0", "1"]
    assert best[0][1] == ["0.200", "0.450", "0.700"]
    assert [kind for _, _, kinds in best for kind in kinds[-1:]] == ["good", "good", "bad"]
    assert [place for place, *_ in after({"score": "proxy", "order": "2", "category": "colour"})] == ["0", "2"]
    assert [place for place, *_ in after({"words": "STARS sun"})] == ["1"]


def test_one_strength_and_a_negative_of_its_own_are_no_sweep(tmp_path):
    found, _ = made(tmp_path)
    whole = found.arms[1]
    assert len(list(_sweeps(found))) == 1
    beside = whole.model_copy(update={"adapters": {"mine": 1.0}, "negative": {"other": 1.0}})
    for arms in ([whole], [whole, whole], [whole, beside]):
        assert list(_sweeps(found.model_copy(update={"arms": arms}))) == []


def test_prompts_that_repeat_are_told_and_are_one_prompt_for_the_intervals(tmp_path):
    items = [Item(text, "") for text in ("a star", "A  star", "a sun", "a box", "a cat")]
    small, generator = torch.rand(5, 1, 3, 4, 4), torch.Generator().manual_seed(0)
    old, new = (
        Measured(arm=Arm(label), scores={"gold": torch.randn(5, 1, generator=generator)}, small=small)
        for label in ("base", "mine")
    )
    found = against(old, new, items)
    gain = found.scores["gold"]
    wanted = gains(old.scores, new.scores, [0, 0, 1, 2, 3])["gold"]
    assert gain == wanted and (gain.num_prompts, gain.num_distinct) == (5, 4)
    told, _ = made(tmp_path)
    first = next(lines(told.model_copy(update={"num_prompts": 5, "num_distinct": 4})))
    assert first == "5 prompts (4 distinct) of mine.txt, 2 images each"
    assert next(lines(told)) == "3 prompts of mine.txt, 2 images each"

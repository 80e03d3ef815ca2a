"""report.html: self-contained, escaped, complete where there is something to show, and clean in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from align.errors import UserError
from align.figures.statistics import compare
from align.policy import adapter_file, soft_prompt
from align.reports import curves
from align.reports import page as report
from align.reports.summary import Summary, lines
from align.training import evaluate

NASTY = '<script>throw new Error("x")</script> "a" & <b>b</b>'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def summary(**changes) -> Summary:
    scores = torch.arange(8.0)
    told = {
        "method": "draft", "model": "sd <tiny>", "seed": 0, "num_processes": 1, "num_updates": 60,
        "stopped": "the guard: <no progress>", "chosen_update": 40, "report_prompts": "shapes:report",
        "scores": {"pick": compare(scores, scores + 1), "gold": compare(scores, scores + scores.cos())},
        "findings": {"guard": {
            "events": [{"update": 60, "event": "the images & prompts <differ>"}],
            "sweep": [{"strength": s, "score": s * (2 - s)} for s in (0.25, 0.5, 1.0, 1.25)],
            "recommended_strength": 1.0,
            "seconds": 1.0,
        }},
        "trained_on": ["pick"], "seconds": 12.0, "seconds_per_update": 0.2, "network_calls": 1000,
        "forward_equivalents": 3000, "peak_rss_mib": 500.0, "peak_gpu_mib": None, "hardware": "a <machine>",
        "versions": {"torch": "2"},
    }  # fmt: skip
    return Summary(**{**told, **changes})


def folder(path, *, records=True, pictures=True, **changes):
    path.mkdir()
    (path / "summary.json").write_text(summary(**changes).model_dump_json())
    (path / "recipe.yaml").write_text(f"objective: draft\ndata:\n- '{NASTY}'\n")
    lines = []
    for step in range(61):
        record = {"step": step}
        if step:
            record |= {"reward/pick": step / 9, "reward/total": step / 9, "grad_norm": 0.1, "adapter_norm": 0.01 * step}
            record |= {"pixel_grad/pick": 0.2, "pixel_grad/clip": 0.1, "cosine/pick/clip": -0.3, "outcome": "applied"}
        if step % 20 == 0:
            record |= {
                "guard/score": step / 60,
                "guard/clip": 0.3,
                "guard/diversity": 0.2,
                "panel/gold": 1.3 - step / 99,
            }
        lines.append(json.dumps(record) + "\n")
    (path / "metrics.jsonl").write_text("".join(lines) if records else "")
    if pictures:
        (path / evaluate.FOLDER).mkdir()
        told = {name: {"pick": [0.5, 1.5], "gold": [float(i), 1.0]} for i, name in enumerate(("before", "after"))}
        written = {"verdict": "gold", "prompts": [NASTY, "a red star"], "scores": told}
        (path / evaluate.FOLDER / evaluate.SCORES).write_text(json.dumps(written))
        for number in range(2):
            for name, side in (("before", 32), ("after", 200)):
                Image.new("RGB", (side, side), (200, 30, 40)).save(path / evaluate.FOLDER / f"{number:04d}-{name}.png")
    return path


class Page(HTMLParser):
    """Tags with their attributes, and the text between them; the tags must close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_it_is_one_file_with_every_prompt_as_text(tmp_path):
    text = report.write(folder(tmp_path / "run")).read_text()
    page = Page(text)
    assert NASTY in page.words and "the guard: <no progress>" in "".join(page.words)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "b-")]
    sources = [a["src"] for _, a in page.tags if a.get("src")]
    assert len(sources) == 4 and all(source.startswith("data:image/") for source in sources)
    assert sum(source.startswith("data:image/png") for source in sources) == 2, "small ones without loss"
    assert not re.findall(r"https?://", text) and "url(" not in text
    words = " ".join(page.words)
    for said in ("Before and after", "Proxy and gold", "The guard", "Gradients", "recipe, resolved", "a <machine>"):
        assert said in words
    said_of_the_guard = ("recommended strength", "cosine between", "Watching took 1.0 s, 8 %")
    for said in (*said_of_the_guard, "the images & prompts <differ>", "500 MiB", "12.0 s in"):
        assert said in words


def test_what_there_is_not_is_not_shown(tmp_path):
    bare = folder(tmp_path / "run", records=False, pictures=False, scores={}, findings={}, stopped=None)
    words = Page(report.write(bare).read_text()).words
    titles = {"Before and after", "Training", "Proxy and gold", "The guard", "Gradients", "How it was made"}
    assert titles & set(words) == {"How it was made"}


def test_the_samples_stand_in_a_row_over_the_updates(tmp_path):
    run = folder(tmp_path / "run")
    (run / "samples").mkdir()
    for step in range(0, 70, 5):  # of which 65 is of a longer run before
        Image.new("RGB", (140, 140), (step, 0, 0)).save(run / "samples" / f"step-{step:06d}.png")
    text = report.write(run).read_text()
    strip = text.split('<div class="strip">')[1].split("</div>")[0]
    said = re.findall(r"<figcaption>(.*?)</figcaption>", strip)
    assert said == ["before", *(f"update {n}" for n in (10, 15, 25, 35, 45, 50, 60))] and strip.count("<img") == 8


def test_a_guard_that_has_looked_three_times_raises_no_alarm_by_its_axes():
    """Real numbers of a run whose images did not change to the eye."""
    seen = zip((0, 3, 6), (0.0, -0.0437, -0.0376), (0.0, 4.3e-5, 6.1e-5), (0.42, 0.417, 0.416), strict=True)
    records = [{"step": n, "guard/score": s, "drift": d, "guard/diversity": v} for n, s, d, v in seen]
    score, drift, diversity, *_ = [drawn for _, drawn in curves.guard(records, {})]
    ys = [[float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)] for drawn in (score, drift, diversity)]
    assert all(len(of_one) == 3 for of_one in ys) and "<path" not in re.sub(r"<path[^>]*var\(--grid\)[^>]*>", "", score)
    assert max(ys[0]) - min(ys[0]) < 12 and max(ys[2]) - min(ys[2]) < 5, "of 186 that the axis is high"
    assert all(re.search(r">0(.0+)?</text>", drawn) for drawn in (drift, diversity)), "zero is in view"


def test_an_unfinished_run_has_no_report(tmp_path):
    with pytest.raises(UserError, match=r"holds no summary.json: it is no run's"):
        report.write(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match=r"holds no summary.json: the run is not finished"):
        report.write(tmp_path)


def test_a_run_that_has_ended_names_the_command_that_follows(tmp_path):
    """One line, the last, to be pasted as it stands; of what a run has left."""
    run = folder(tmp_path / "my run")
    (run / "adapter").mkdir()

    def last() -> str:
        return [*lines(summary(), run)][-1]

    assert last().endswith("my run/adapter"), "of a solver there is none to name"
    (run / "adapter" / adapter_file.FILE_NAME).touch()
    assert last() == f"next:  align sample '{run}' \"a prompt\"   # or: align evaluate '{run}' -n 32"
    (run / "adapter" / soft_prompt.FILE_NAME).touch()
    assert last() == f"next:  align sample '{run}' \"a prompt with its word\""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_it_without_an_error(tmp_path):
    def shown(page, picture):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
        flags += ["--window-size=1200,2600", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
        done = subprocess.run([str(CHROMIUM), *flags, page.as_uri()], capture_output=True, text=True, timeout=300)
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    page = report.write(folder(tmp_path / "run"))
    picture = tmp_path / "page.png"
    assert shown(page, picture) == []
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    assert image.size == (1200, 2600)
    counts = {colour: count for count, colour in image.getcolors(maxcolors=2**24) or ()}
    assert counts.get((200, 30, 40), 0) > 20_000, "the pictures are there"
    assert max(counts.values()) < 0.9 * 1200 * 2600, "and the page is not empty"
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</body>", '<script>console.error("seen")</script></body>'))
    assert len(shown(broken, picture)) == 1, "an error would have been seen"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_on_a_phone_no_word_of_a_chart_is_below_11_pixels(tmp_path):
    page, frame = report.write(folder(tmp_path / "run")), tmp_path / "frame.html"
    measure = """<script>addEventListener("load", () => { document.title = "pixels " + Math.min(
        ...[...document.querySelectorAll(".chart text")].map((word) => parseFloat(getComputedStyle(word).fontSize)
        * word.ownerSVGElement.getBoundingClientRect().width / word.ownerSVGElement.viewBox.baseVal.width));
        parent.postMessage(document.title, "*"); })</script>"""
    page.write_text(page.read_text().replace("</body>", f"{measure}</body>"))
    listen = 'addEventListener("message", (told) => { document.title = told.data; })'
    frame.write_text(f'<script>{listen}</script><iframe src="{page.as_uri()}" width="400" height="900"></iframe>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    call = [
        str(CHROMIUM),
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=9000",
        frame.as_uri(),
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    found = re.search(r"<title>pixels ([\d.]+)", done.stdout)
    assert found and 11 <= float(found[1]) < 13, done.stdout[:500]


@pytest.mark.parametrize("better", [True, False])
def test_a_recommendation_has_its_doubt(tmp_path, better):
    gain = {"mean": 0.1, "low": -0.1, "high": 0.3, "better": better}
    guard = {"events": [], "sweep": [], "recommended_strength": 1.0, "gain": gain, "seconds": 1.0, "best_update": 40}
    run = folder(tmp_path / "run", findings={"guard": guard})
    said = "recommended strength" if better else "recommended strength, not surely better than the base"
    assert said in Page(report.write(run).read_text()).words
    word = "recommends" if better else "leaves"
    assert f"guard {word} the adapter at strength 1: " in "\n".join(lines(summary(findings={"guard": guard}), run))

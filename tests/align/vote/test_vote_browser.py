"""The vote page in a real browser: choices, a reload, two voters, a wrong secret, markup in a prompt, no image."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from pair_toys import picture

from align.vote.ballots import Votes, ballots
from align.vote.server import Server

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
webdriver = pytest.importorskip("selenium.webdriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
MARKUP = "<img src=x onerror=\"document.title='broken'\"><b>a cat</b>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, "--window-size=1000,800"):
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    found.set_page_load_timeout(120)
    yield found
    found.quit()


@pytest.fixture
def served(tmp_path):
    rows = []
    for i in range(66):
        picture(tmp_path / f"{i}.png", i)
        rows.append((str(tmp_path / f"{i}.png"), MARKUP if i < 3 else f"number {i // 3}"))
    votes = Votes(tmp_path, ballots(rows, how="best", most=4, seed=0), "best")
    server = Server(votes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(20)


def until(check, seconds=60):
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "the page did not come to this"
        time.sleep(0.02)
    return found


def one(browser, name):
    return browser.find_element("id", name)


def pressed(browser, key):
    browser.find_element("tag name", "body").send_keys(key)


def shown(browser, done, total=22):
    until(lambda: one(browser, "progress").text == f"{done} of {total}")


def kept(browser, name):
    if folder := os.environ.get("ALIGN_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_twenty_choices_a_reload_and_two_voters_lose_nothing(browser, served):
    votes = served.votes
    browser.get(served.address)
    shown(browser, 0)
    assert one(browser, "prompt").text == MARKUP and "broken" not in browser.title
    assert not browser.find_elements("css selector", "#prompt *")
    kept(browser, "first")
    wanted = []
    for number in range(10):
        ballot, place = votes.asked[number], number % 3
        pressed(browser, str(place + 1))
        wanted.append((ballot.key, ballot.shown[place]))
        shown(browser, number + 1)
    browser.refresh()
    shown(browser, 10)
    first = browser.current_window_handle
    browser.switch_to.new_window("window")  # a second voter at the same ballots
    second = browser.current_window_handle
    browser.get(served.address)
    shown(browser, 10)
    for number in range(10, 20):
        browser.switch_to.window((first, second)[number % 2])
        if number > 10:  # this window still shows the ballot that the other has just answered
            pressed(browser, "1")
            shown(browser, number)
        ballot = votes.asked[number]
        until(lambda key=ballot.key: key in browser.find_element("css selector", "#pictures img").get_attribute("src"))
        pressed(browser, "3")
        wanted.append((ballot.key, ballot.shown[2]))
        shown(browser, number + 1)
    browser.close()
    browser.switch_to.window(first)
    assert [(key, vote.choice) for key, vote in votes.given.items()] == wanted
    lines = [json.loads(line) for line in votes.file.read_text().splitlines()]
    assert [(line["ballot"], line["choice"]) for line in lines] == wanted and len(wanted) == 20
    browser.set_window_size(400, 800)
    browser.refresh()
    shown(browser, 20)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    kept(browser, "phone")
    browser.set_window_size(1000, 800)
    pressed(browser, "u")
    shown(browser, 19)
    assert len(votes.given) == 19


def test_a_wrong_secret_and_a_picture_that_is_gone(browser, served):
    ballot = served.votes.asked[0]
    browser.get(served.address.replace(served.secret, "x" * len(served.secret)))
    assert browser.execute_script("return performance.getEntriesByType('navigation')[0].responseStatus") == 403
    assert "Forbidden" in browser.page_source
    Path(ballot.images[ballot.shown[1]]).unlink()
    browser.get(served.address)
    shown(browser, 0)
    kept(browser, "missing")
    size = "return document.querySelectorAll('#pictures img')[arguments[0]].naturalWidth"
    until(lambda: browser.execute_script(size, 0) and browser.execute_script(size, 2))
    assert browser.execute_script(size, 1) == 0
    pressed(browser, "1")
    shown(browser, 1)
    assert served.votes.given[ballot.key].choice == ballot.shown[0]

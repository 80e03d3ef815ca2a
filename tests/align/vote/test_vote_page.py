"""The page's own script, on a stand-in for a browser, against a running server."""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from pair_toys import picture

from align.vote.ballots import Votes, ballots
from align.vote.server import Server

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node, as a stand-in for a browser")
WORDS = "<b>a cat</b>"


@contextmanager
def page(folder, how):
    """(what the page shows after each of some keys and clicks, the votes)"""
    rows = []
    for i in range(6):
        picture(folder / f"{i}.png", i)
        rows.append((str(folder / f"{i}.png"), WORDS if i < 3 else "two"))
    votes = Votes(folder, ballots(rows, how=how, most=4, seed=0), how)
    server = Server(votes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def played(*steps):
        command = [str(NODE), str(Path(__file__).with_name("page_dom.js")), server.address, *steps]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    yield played, votes
    server.shutdown()
    server.server_close()
    thread.join(20)


def choices(votes):
    return [votes.given[b.key].choice for b in votes.asked if b.key in votes.given]


def test_a_number_chooses_the_best_and_u_takes_it_back(tmp_path):
    with page(tmp_path, "best") as (played, votes):
        start, voted, back, clicked, done = played("2", "u", "@0", "3")
        assert start["prompt"] == WORDS and start["progress"] == "0 of 2" and not start["undo"]
        assert [source.rsplit("/", 2)[1:] for source in start["sources"]] == [
            [votes.asked[0].key, str(i)] for i in range(3)
        ]
        assert (voted["prompt"], voted["progress"], voted["undo"]) == ("two", "1 of 2", True)
        assert back["prompt"] == WORDS and back["progress"] == "0 of 2"
        assert clicked["prompt"] == "two" and done["progress"] == "2 of 2" and done["prompt"].startswith("All done")
        assert choices(votes) == [votes.asked[0].shown[0], votes.asked[1].shown[2]]
        assert not any(said["trouble"] for said in (start, voted, back, clicked, done))


def test_ranks_are_given_one_by_one_and_the_last_fills_itself(tmp_path):
    with page(tmp_path, "rank") as (played, votes):
        seen = played("3", "Enter", "Backspace", "1", "3", "Enter", "s")
        assert seen[1]["marks"] == ["1", "2", "3, rank 1"] and seen[2]["progress"] == "0 of 2", (
            "not before all are ranked"
        )
        assert seen[3]["marks"] == ["1", "2", "3"]
        assert seen[5]["marks"] == ["1, rank 1", "2, rank 3", "3, rank 2"]
        assert seen[6]["progress"] == "1 of 2" and seen[7]["progress"] == "2 of 2"
        shown = votes.asked[0].shown
        assert choices(votes) == [[shown[0], shown[2], shown[1]], None]


def test_thumbs_turn_from_none_to_up_to_down(tmp_path):
    with page(tmp_path, "thumbs") as (played, votes):
        seen = played("1", "2", "2", "3", "3", "3", "#submit")
        assert [mark[0] for mark in seen[6]["marks"]] == ["1", "2", "3"] and seen[6]["marks"][2] == "3"
        assert seen[7]["progress"] == "1 of 2"
        expected = [None] * 3
        expected[votes.asked[0].shown[0]], expected[votes.asked[0].shown[1]] = 1, 0
        assert choices(votes) == [expected]


def test_a_vote_that_cannot_be_kept_is_said_and_not_counted(tmp_path):
    with page(tmp_path, "best") as (played, votes):
        votes.file.mkdir()  # nothing can be appended there
        said = played("1")[1]
        assert said["trouble"].startswith("Not saved: Insufficient Storage") and said["progress"] == "0 of 2"

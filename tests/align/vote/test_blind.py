"""Blind choices between an evaluation's arms: order, what counts, the rates."""

import json
from itertools import pairwise

import pytest
import torch
from pair_toys import picture

from align.evaluation.arms import Arm
from align.evaluation.benchmarks import Item
from align.evaluation.files import Folder
from align.figures.statistics import rate
from align.vote.ballots import Votes
from align.vote.blind import asked, keep, lines, rates, shuffled

BASE, ARMS = Arm("base"), [Arm("one"), Arm("two")]


@pytest.fixture
def made(tmp_path):
    items = [Item(f"prompt {i}") for i in range(12)]
    folder = Folder(tmp_path)
    for number, arm in enumerate((BASE, *ARMS)):
        for i in range(12):
            picture(folder.image(arm, i, 0), 3 * i + number)
    return folder, asked(folder, BASE, ARMS, items, 0)


def test_nobody_can_tell_which_arm_is_asked_about_or_whose_a_picture_is(made):
    _, ballots = made
    order = shuffled(ballots, 0)
    assert len(order) == 24 and order == shuffled(ballots, 0) != shuffled(ballots, 1)
    firsts = [ballot.shown[0] for ballot in order]
    assert 4 < sum(firsts) < 20
    labels = [next(label for label, some in ballots.items() if ballot in some) for ballot in order]
    assert 2 < sum(a != b for a, b in pairwise(labels))


def test_rates_are_of_images_whatever_their_places(made, tmp_path):
    _, ballots = made
    votes = Votes(tmp_path, shuffled(ballots, 0), "best")
    one = {ballot.key for ballot in ballots["one"]}
    for number, ballot in enumerate(votes.asked):  # the arm one always wins, two never; one is skipped
        wanted = 1 if ballot.key in one else 0
        votes.vote(ballot, None if number == 0 else ballot.shown.index(wanted))
    found = {rate.label: rate for rate in rates(ballots, votes.given)}
    assert found["one"].share.mean == 1 and found["two"].share.mean == 0
    assert found["one"].asked + found["two"].asked == 23 and found["one"].skipped + found["two"].skipped == 1
    assert found["one"].share.low > 0.6 and found["two"].share.high < 0.4
    said = lines(list(found.values()), "base")
    assert said[0].startswith("one: chosen over base") and "100 % [" in said[0]
    keep(list(found.values()), "base", tmp_path)
    assert json.loads((tmp_path / "votes.json").read_text())["arms"][1]["chosen"] == 0


def test_choices_about_the_same_prompt_are_of_one_prompt(made, tmp_path):
    _, ballots = made
    votes = Votes(tmp_path, shuffled(ballots, 0), "best")
    for number, ballot in enumerate(votes.asked):
        votes.vote(ballot, number % 2)
    texts = ("a star", "A  star", "a sun", "a box", "a cat", "a cat")
    alike = {"one": [ballot._replace(prompt=texts[i // 2]) for i, ballot in enumerate(ballots["one"])]}
    few, many = (rates(each, votes.given)[0] for each in (alike, ballots))
    made_of = [float(votes.given[ballot.key].choice) for ballot in ballots["one"]]
    assert few.share == rate(torch.tensor(made_of)[:, None], [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3])
    assert few.share.mean == many.share.mean and few.share != many.share


def test_what_was_drawn_anew_is_asked_again_and_equal_pictures_never(made):
    folder, ballots = made
    items = [Item(f"prompt {i}") for i in range(12)]
    picture(folder.image(ARMS[0], 3, 0), 77)
    folder.image(ARMS[0], 5, 0).write_bytes(folder.image(BASE, 5, 0).read_bytes())
    again = asked(folder, BASE, ARMS, items, 0)
    changed = [i for i, (a, b) in enumerate(zip(ballots["one"], again["one"], strict=True)) if a.key != b.key]
    assert changed == [3, 5] and len(shuffled(again, 0)) == 23
    assert rates(again, {})[0].share is None and lines(rates(again, {}), "base")[0] == "one: no choices yet"

"""Voters with names, and how far they agree."""

import random

import pytest
from pair_toys import picture
from typer.testing import CliRunner

from align.commands.app import app
from align.vote.agreement import Agreement, agreement
from align.vote.ballots import Vote, Votes, ballots

NO = None


def thumbs(values):
    """One picture a prompt; None: not judged."""
    return [Vote("thumbs", f"prompt {i}", (f"{i}.png",), [v]) for i, v in enumerate(values)]


def known(**voters) -> Agreement:
    found = agreement(voters)
    assert found is not None
    return found


def test_alpha_is_krippendorffs():
    """Two observers, ten units, binary (Krippendorff 2011, section A): alpha = .095, agreement 60 %."""
    a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = known(a=thumbs(a), b=thumbs(b))
    assert (found.units, found.share) == (10, pytest.approx(0.6)) and found.alpha == pytest.approx(0.095, abs=5e-4)


def test_what_one_alone_judged_does_not_count_and_three_are_counted_by_twos():
    found = known(a=thumbs([1, 1, NO]), b=thumbs([1, NO, 0]), c=thumbs([0, NO, NO]))
    assert found.units == 1 and found.share == pytest.approx(1 / 3)
    assert agreement({"a": thumbs([1, NO]), "b": thumbs([NO, 1])}) is None
    assert known(a=thumbs([1, 1]), b=thumbs([1, 1])).alpha is None


def test_the_best_of_three_is_two_judgements_whatever_the_order_of_the_pictures():
    one = [Vote("best", "p", ("x", "y", "z"), 1)]
    assert known(a=one, b=[Vote("rank", "p", ("z", "y", "x"), [1, 0, 2])])[:3] == (2, 2, 1.0)
    draw = random.Random(0)
    by_chance = {
        name: [Vote("best", f"{i}", (f"{i}a", f"{i}b"), int(draw.random() < 0.5)) for i in range(4000)] for name in "ab"
    }
    assert known(**by_chance).alpha == pytest.approx(0, abs=0.06)
    always = {name: [Vote("best", f"{i}", (f"{i}a", f"{i}b"), 1) for i in range(400)] for name in "ab"}
    assert known(**always).alpha == 1, "the second model is better, and both say so"


def test_two_voters_share_a_folder_and_the_data_are_of_both(tmp_path):
    rows = []
    for i in range(3):
        for j in range(2):
            picture(tmp_path / f"{i}-{j}.png", 2 * i + j)
            rows.append((str(tmp_path / f"{i}-{j}.png"), f"prompt {i}"))
            (tmp_path / f"{i}-{j}.txt").write_text(f"prompt {i}")
    for voter, liked in (("anna", (0, 0, 1)), ("ben", (0, 1, 1))):
        questions = ballots(rows, how="best", most=4, seed=0, voter=voter)
        votes = Votes(tmp_path, questions, "best", voter)
        for ballot, image in zip(questions, liked, strict=True):
            votes.vote(ballot, ballot.shown.index(image))
    command = ["vote", str(tmp_path), "--export", "-o", str(tmp_path)]
    said = CliRunner().invoke(app, command).output
    assert "6 rows" in said and "2 voters: two agree on 67% of 3 judgements" in said.replace("\n", " ")
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 6
    refused = CliRunner().invoke(app, [*command, "--voter", "../x"])
    assert refused.exit_code == 2 and not list(tmp_path.parent.glob("x*"))


def test_voters_see_the_same_ballots_in_places_of_their_own():
    rows = [(f"{i}-{j}", f"prompt {i}") for i in range(40) for j in range(4)]
    a, b = (ballots(rows, how="best", most=4, seed=0, voter=name) for name in ("anna", "ben"))
    assert [x.key for x in a] == [x.key for x in b] and [x.shown for x in a] != [x.shown for x in b]

"""Votes: what is asked, what is kept, what comes out, and who may speak to the page."""

import http.client
import json
import shlex
import threading
from collections import Counter

import pytest
import torch
from pair_toys import picture, policy_on, prepared
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from align.commands.app import app
from align.data._labels import read_labels
from align.data._pairs import read_pairs
from align.errors import UserError
from align.figures.local import HEADERS
from align.objectives._base import Parts
from align.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from align.vote.ballots import Ballot, Votes, ballots, unshuffled
from align.vote.export import export
from align.vote.server import Handler, Server

WORDS = '<script>alert(1)</script> & "a cat"'


def rows(folder, prompts=("a cat", "two", WORDS), each=3):
    found = []
    for i, prompt in enumerate(prompts):
        for j in range(each):
            file = folder / f"{i}-{j}.png"
            picture(file, each * i + j)
            found.append((str(file), prompt))
    return found


def asked(folder, how="best", most=4, **more):
    return ballots(rows(folder, **more), how=how, most=most, seed=0)


# ---- ballots and votes ---------------------------------------------------------------------------------------------


def test_a_prompts_pictures_are_shared_out_evenly(tmp_path):
    found = asked(tmp_path, most=4, prompts=("a",), each=9)
    assert [len(ballot.images) for ballot in found] == [3, 3, 3]
    assert [name for ballot in found for name in ballot.images] == [name for name, _ in rows(tmp_path, ("a",), 9)]
    assert all(sorted(ballot.shown) == [0, 1, 2] for ballot in found)
    assert not asked(tmp_path, each=1) and len(asked(tmp_path, "thumbs", each=1)) == 3
    assert asked(tmp_path, most=4, prompts=("a",), each=9) == found, "the same places again"


def test_what_two_folders_drew_stands_side_by_side():
    rows = [(f"{folder}/{i}.png", "a star") for folder in ("a", "b", "c") for i in range(4 if folder != "c" else 2)]
    found = [ballot.images for ballot in ballots(rows, how="best", most=2, seed=0)]
    assert found == [
        ("a/0.png", "b/0.png"),
        ("c/0.png", "a/1.png"),
        ("b/1.png", "c/1.png"),
        ("a/2.png", "b/2.png"),
        ("a/3.png", "b/3.png"),
    ]


def test_no_image_has_a_place_of_its_own():
    names = [(f"{i}-{j}", f"prompt {i}") for i in range(400) for j in range(2)]
    first = Counter(ballot.shown[0] for ballot in ballots(names, how="best", most=2, seed=0))
    assert abs(first[0] - 200) < 45


@pytest.mark.parametrize("shown", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_choice_is_of_images_whatever_their_places(shown):
    """Whoever likes image 1 best and 0 least says so at any places."""
    ballot = Ballot("", "x", ("a", "b", "c"), shown)
    place = {image: shown.index(image) for image in range(3)}
    assert unshuffled(ballot, "best", place[1]) == 1
    assert unshuffled(ballot, "rank", [place[1], place[2], place[0]]) == [1, 2, 0]
    thumbs = [{1: 1, 2: None, 0: 0}[image] for image in shown]
    assert unshuffled(ballot, "thumbs", thumbs) == [0, 1, None]
    assert unshuffled(ballot, "best", None) is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        *(("best", said) for said in (3, -1, "0", True)),
        *(("rank", said) for said in ([0, 1], [0, 0, 1], 1, [0, 1, True])),
        *(("thumbs", said) for said in ([1, 0], [1, 0, 2], [1, 0, True], {})),
    ],
)
def test_what_is_no_choice_is_refused(how, said):
    with pytest.raises(ValueError):
        unshuffled(Ballot("", "x", ("a", "b", "c"), (2, 0, 1)), how, said)


def test_votes_survive_and_can_be_taken_back(tmp_path):
    questions = asked(tmp_path)
    votes = Votes(tmp_path, questions, "best")
    for _ in range(2):
        votes.vote(votes.open(), 0)
    assert votes.undo() == questions[1] and votes.open() == questions[1]
    votes.vote(questions[1], 2)
    again = Votes(tmp_path, questions, "best")
    assert again.given == votes.given and again.open() == questions[2] and again.done() == 2
    assert again.given[questions[1].key].choice == questions[1].shown[2]
    assert again.undo() == questions[1] and again.undo() == questions[0] and again.undo() is None


def test_a_vote_is_on_the_disk_when_it_is_answered(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append((tmp_path / "votes.jsonl").read_text()))
    votes = Votes(tmp_path, asked(tmp_path), "best")
    votes.vote(votes.open(), 1)
    assert len(synced) == 1 and json.loads(synced[0])["choice"] == votes.asked[0].shown[1]


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    questions = asked(tmp_path)
    votes = Votes(tmp_path, questions, "best")
    votes.vote(votes.open(), 0)
    whole = votes.file.read_text()
    votes.file.write_text(whole + whole[:30])
    again = Votes(tmp_path, questions, "best")
    assert again.open() == questions[1]
    again.vote(questions[1], 0)
    assert Votes(tmp_path, questions, "best").done() == 2
    votes.file.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is no vote"):
        Votes(tmp_path, questions, "best")


@pytest.mark.parametrize(
    ("how", "choice"), [("best", 9), ("best", -1), ("rank", "ab"), ("rank", [0, 0]), ("thumbs", [1]), ("worst", 0)]
)
def test_a_line_whose_choice_is_none_is_named_and_nothing_is_written(tmp_path, monkeypatch, how, choice):
    monkeypatch.chdir(tmp_path)
    names = [name for name, _ in rows(tmp_path / "drawn", prompts=("a cat",), each=2)]
    (tmp_path / "votes").mkdir()
    line = {"ballot": "x", "how": how, "prompt": "a cat", "images": names, "choice": choice}
    (tmp_path / "votes" / "votes.jsonl").write_text(f"{json.dumps(line)}\n")
    done = CliRunner().invoke(app, ["vote", "drawn", "--prompts", "a cat", "--export"])
    assert done.exit_code == 2 and "line 1 is no vote" in done.output, done.exception
    assert not (tmp_path / "votes" / "pairs.jsonl").exists()


def test_what_comes_next_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "drawn", prompts=("a cat",), each=2)
    monkeypatch.setattr("align.commands.vote.serve", lambda votes, port, *, browser: votes.vote(votes.open(), 0))
    done = CliRunner().invoke(app, ["vote", "drawn", "--prompts", "a cat", "-o", "my votes"])
    (said,) = [line for line in done.output.splitlines() if line.startswith("next:")]
    words = shlex.split(said.removeprefix("next:"))
    assert words[3:] == ["data.pairs=my votes", "data.make=null", "output=runs/my votes"]


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path, monkeypatch):
    questions = asked(tmp_path)
    votes = Votes(tmp_path, questions, "best")
    votes.vote(questions[0], 0)
    whole = votes.file.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("os.fsync", full)
        votes.vote(questions[1], 0)
    assert votes.file.read_bytes() == whole and votes.open() == questions[1]
    votes.vote(questions[1], 0)
    assert Votes(tmp_path, questions, "best").done() == 2


# ---- what comes out ------------------------------------------------------------------------------------------------


def test_the_best_and_rankings_are_pairs_and_thumbs_labels(tmp_path):
    for how, said, expected in (
        ("best", 0, {(0, 1), (0, 2)}),
        ("rank", [2, 0, 1], {(2, 0), (2, 1), (0, 1)}),
    ):
        folder = tmp_path / how
        questions = asked(folder, how, prompts=("a cat",))
        votes = Votes(folder, questions, how)
        votes.vote(questions[0], said)
        (written,) = export(votes.given.values(), folder).items()
        assert written == (folder / "pairs.jsonl", len(expected))
        shown = questions[0].shown
        numbers = {(int(p.winner.path.stem[-1]), int(p.loser.path.stem[-1])) for p in read_pairs(folder)}
        assert numbers == {(shown[w], shown[lost]) for w, lost in expected}
    folder = tmp_path / "thumbs"
    questions = asked(folder, "thumbs", prompts=("a cat",))
    votes = Votes(folder, questions, "thumbs")
    votes.vote(questions[0], [1, None, 0])
    assert list(export(votes.given.values(), folder).values()) == [2]
    labels = {int(row.picture.path.stem[-1]): row.good for row in read_labels(folder)}
    assert labels == {questions[0].shown[0]: True, questions[0].shown[2]: False}
    votes.undo()
    assert not export(votes.given.values(), folder) and not (folder / "labels.jsonl").exists()


def test_a_recipe_trains_on_votes(tiny_sd_factory, tmp_path):
    questions = asked(tmp_path / "pictures")
    folder = tmp_path / "votes"
    folder.mkdir()
    votes = Votes(folder, questions, "best")
    for ballot in questions:
        votes.vote(ballot, 0)
    export(votes.given.values(), folder)
    policy = policy_on(tiny_sd_factory())
    batch = next(iter(prepared(policy, folder)))
    loss = DiffusionDPO(DiffusionDPOConfig(), Parts(policy.model, None, None, 0))(policy, batch)
    assert bool(torch.isfinite(loss.per_sample).all()) and set(batch.prompts) <= {"a cat", "two", WORDS}


# ---- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    server = Server(Votes(tmp_path, asked(tmp_path), "best"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def ask(server, name, body=None, *, host=None, secret=None, **headers):
    """(status, headers, content) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    own = host or f"127.0.0.1:{server.server_port}"
    said = {"Host": own} | headers
    if body is not None:
        said = {"Origin": f"http://{own}", "Content-Type": "application/json"} | said
    path = f"/{server.secret if secret is None else secret}/{name}"
    data = body if isinstance(body, str | None) else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {k: v for k, v in said.items() if v})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_a_vote_by_the_page(served):
    status, headers, content = ask(served, "")
    assert status == 200 and b"vote.js" in content and all(headers[name] == value for name, value in HEADERS.items())
    assert headers["Content-Security-Policy"] == Handler.policy and b"<style" not in content
    for name in ("vote.js", "vote.css", "style.css"):
        assert ask(served, name)[0] == 200
    state = json.loads(ask(served, "state")[2])
    assert (state["done"], state["total"], state["count"], state["undo"]) == (0, 3, 3, False)
    ballot = served.votes.asked[0]
    for place in range(3):
        status, headers, content = ask(served, f"picture/{ballot.key}/{place}")
        assert status == 200 and headers["Content-Type"] == "image/png"
        import io

        shown, own = Image.open(io.BytesIO(content)), Image.open(ballot.images[ballot.shown[place]])
        assert shown.tobytes() == own.convert("RGB").tobytes()
    status, _, content = ask(served, "vote", {"ballot": ballot.key, "choice": 2})
    assert status == 200 and json.loads(content)["done"] == 1
    assert served.votes.given[ballot.key].choice == ballot.shown[2]
    status, _, content = ask(served, "vote", {"ballot": ballot.key, "choice": 0})
    assert status == 409 and json.loads(content)["ballot"] == served.votes.asked[1].key, "another window was quicker"
    assert json.loads(ask(served, "undo", {})[2])["done"] == 0


def test_it_listens_to_this_machine_alone(served):
    assert served.server_address[0] == "127.0.0.1" and served.address.startswith("http://127.0.0.1:")
    assert len(served.secret) >= 32 and served.secret in served.address


@pytest.mark.parametrize("name", ["", "state", "vote.js", "picture/0123456789abcdef/0"])
def test_without_the_secret_there_is_nothing(served, name):
    for secret in ("", "x", served.secret[:-1], served.secret.swapcase()):
        status, _, content = ask(served, name, secret=secret)
        assert status == 403 and content == b"Forbidden"
    assert ask(served, "vote", {"ballot": served.votes.asked[0].key, "choice": 0}, secret="x")[0] == 403
    assert served.votes.done() == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost", "0.0.0.0:{port}"])
def test_another_host_is_refused(served, host):
    """A foreign name that was made to point to this machine."""
    name = host.format(port=served.server_port)
    assert ask(served, "state", host=name)[0] == 421
    assert ask(served, "undo", {}, host=name)[0] == 421
    assert ask(served, "state", host=f"localhost:{served.server_port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "https://127.0.0.1:{port}"])
def test_a_vote_from_another_page_is_refused(served, origin):
    said = {"ballot": served.votes.asked[0].key, "choice": 0}
    status, _, _ = ask(served, "vote", said, Origin=origin.format(port=served.server_port))
    assert status == 403 and served.votes.done() == 0


@pytest.mark.parametrize("body", ["", "[]", "{", '{"ballot": 1}', "[" * 5000, '"x"', "x" * 5000])
def test_bodies_that_are_no_votes_are_refused(served, body):
    assert ask(served, "vote", body)[0] in (400, 409) and served.votes.done() == 0
    key = served.votes.asked[0].key
    assert ask(served, "vote", {"ballot": key, "choice": 7})[0] == 400
    assert ask(served, "vote", {"ballot": key, "choice": 0}, **{"Content-Type": "text/plain"})[0] == 400
    assert not served.votes.file.exists()


@pytest.mark.parametrize(
    "name", ["../votes.jsonl", "picture/../../x", "vote.html", "picture/{key}/9", "picture/{key}/3", "x"]
)
def test_no_file_but_the_ballots_is_handed_out(served, name):
    key = served.votes.asked[0].key
    assert ask(served, name.format(key=key))[0] == 404


def test_what_files_say_is_text_and_never_markup(served):
    """The page has none of it; it comes as JSON and the script puts it in as text."""
    for ballot in served.votes.asked[:2]:
        served.votes.vote(ballot, 0)
    assert json.loads(ask(served, "state")[2])["prompt"] == WORDS
    assert b"script>alert" not in ask(served, "")[2]
    script = ask(served, "vote.js")[2].decode()
    assert "textContent = state.prompt" in script
    assert not any(
        word in script for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    )
    assert "'unsafe" not in Handler.policy


def test_a_picture_tells_nothing_of_where_it_comes_from(served, tmp_path):
    ballot = served.votes.asked[0]
    info = PngInfo()
    info.add_text("source", "runs/the-arm-that-should-win")
    with Image.open(ballot.images[ballot.shown[0]]) as image:
        image.load()
        image.save(ballot.images[ballot.shown[0]], pnginfo=info)
    content = ask(served, f"picture/{ballot.key}/0")[2]
    assert b"should-win" not in content and str(tmp_path).encode() not in content
    assert str(tmp_path).encode() not in ask(served, "state")[2]


def test_finish_ends_it(tmp_path):
    server = Server(Votes(tmp_path, asked(tmp_path), "best"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    assert ask(server, "finish", {})[0] == 200
    thread.join(20)
    assert not thread.is_alive()
    server.server_close()


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_reads_prompts_from_the_pictures_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "drawn"
    for name, prompt in rows(folder, prompts=("a cat", "two"), each=2):
        info = PngInfo()
        info.add_text("prompt", prompt)
        with Image.open(name) as image:
            image.load()
            image.save(name, pnginfo=info)

    def served(votes, port, *, browser):
        for ballot in votes.asked:
            votes.vote(ballot, 1)

    monkeypatch.setattr("align.commands.vote.serve", lambda votes, port, *, browser: None)
    ended = CliRunner().invoke(app, ["vote", "drawn", "-n", "2"])
    assert ended.exit_code == 0 and "nothing is written" in ended.output and not (tmp_path / "votes").exists()
    monkeypatch.setattr("align.commands.vote.serve", served)
    done = CliRunner().invoke(app, ["vote", "drawn", "-n", "2"])
    assert done.exit_code == 0 and "pairs.jsonl  2 rows" in done.output
    assert {pair.prompt for pair in read_pairs(tmp_path / "votes")} == {"a cat", "two"}
    assert all(pair.winner.path.is_file() for pair in read_pairs(tmp_path / "votes"))
    (tmp_path / "votes" / "pairs.jsonl").unlink()
    again = CliRunner().invoke(app, ["vote", "drawn", "-n", "2", "--export"])
    assert again.exit_code == 0 and (tmp_path / "votes" / "pairs.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such image"),
        (["drawn"], "it has no prompt"),
        (["drawn/0-0.png", "--prompts", "x"], "no prompt has two pictures to compare"),
        (["drawn", "--prompts", "x", "-o", "drawn/0-0.png"], "it is no folder"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "drawn")
    done = CliRunner().invoke(app, ["vote", *words])
    assert done.exit_code == 2 and said in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "votes").exists()

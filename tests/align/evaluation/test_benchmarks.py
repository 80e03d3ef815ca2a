"""The loaders of known benchmarks, on made-up rows in their layouts, over a local HTTP server and from files."""

import csv
import http.server
import io
import json
import re
import threading
from dataclasses import replace

import pytest

from align.errors import UserError
from align.evaluation import benchmarks, benchmarks_fetch
from align.evaluation.benchmarks import BENCHMARKS, Item, load


def table(rows, delimiter=","):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return file.getvalue()


DPG = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"]
POINTS = {"Primary Categories": "Art", "Testpoints": ["Style"], "Testpoint Description": ["ink"]}
UNIGENBENCH = table([["index", "prompt_en", "sub_dims_en"], ["0", "a hut, in ink", json.dumps(POINTS)]])
FILES = {
    "parti": {
        "PartiPrompts.tsv": 'Prompt\tCategory\tChallenge\tNote\n"B Y E" on a box\tArts\tBasic\t\na hut\tFood\tQ\tx\n'
    },
    "drawbench": {
        "gviz/tq?tqx=out:csv&sheet=Sheet1": table([["Prompts", "Category", ""], ["a red, red hut", "Colors", ""]])
    },
    "geneval": {"evaluation_metadata.jsonl": '{"tag": "counting", "include": [{"class": "hut"}], "prompt": "huts"}\n'},
    "geneval2": {"geneval2_data.jsonl": '{"prompt": "two huts", "atom_count": 3}\n'},
    "t2i-compbench": {f"{kind}_val.txt": f"a {kind} hut\nanother\n" for kind in benchmarks._COMPBENCH},
    "t2i-compbench++": {
        f"{kind}_val.txt": f"a {kind} hut\nanother\n" for kind in (*benchmarks._COMPBENCH, "3d_spatial", "numeracy")
    },
    "unigenbench": {"test_prompts_en.csv": UNIGENBENCH},
    "unigenbench-long": {"test_prompts_en_long.csv": UNIGENBENCH},
    "hpdv2": {
        f"{style}.json": json.dumps([f"a {style} hut"]) for style in ("anime", "concept-art", "paintings", "photo")
    },
    "dpg": {
        "dpg_bench.csv": table(
            [
                DPG,
                ["0", "a long, long hut", "k", "1", "0", "entity"],
                ["0", "a long, long hut", "k", "2", "1", "global"],
                ["COCOval2014000000581", "a hut", "k", "1", "0", "entity"],
                ["vrd7", "huts", "k", "1", "0", "entity"],
            ]
        )
    },
}
WANTED = {
    "parti": [Item('"B Y E" on a box', "Arts"), Item("a hut", "Food")],
    "drawbench": [Item("a red, red hut", "Colors")],
    "geneval": [Item("huts", "counting")],
    "geneval2": [Item("two huts", "3 atoms")],
    "t2i-compbench": [i for k in benchmarks._COMPBENCH for i in (Item(f"a {k} hut", k), Item("another", k))],
    "t2i-compbench++": [
        i
        for k in (*benchmarks._COMPBENCH, "3d_spatial", "numeracy")
        for i in (Item(f"a {k} hut", k), Item("another", k))
    ],
    "unigenbench": [Item("a hut, in ink", "Art")],
    "unigenbench-long": [Item("a hut, in ink", "Art")],
    "hpdv2": [Item(f"a {style} hut", style) for style in ("anime", "concept-art", "paintings", "photo")],
    "dpg": [Item("a long, long hut", "numbered"), Item("a hut", "COCOval"), Item("huts", "vrd")],
}


class Home(http.server.BaseHTTPRequestHandler):
    """Serves `pages` {path with query: text}."""

    pages: dict[str, str] = {}  # noqa: RUF012  # set by each test
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        text = self.pages.get(self.path)
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    """(URL, handler) of a local server; what is fetched is kept below tmp_path."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Home,), {"pages": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        server.shutdown()


def at_home(monkeypatch, name, url, count):
    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], home=url, count=count))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_is_fetched_once_and_read_in_its_order(name, home, monkeypatch):
    url, handler = home
    handler.pages = {f"/{file}": text for file, text in FILES[name].items()}
    assert set(FILES[name]) == set(BENCHMARKS[name].files)
    at_home(monkeypatch, name, url, len(WANTED[name]))
    assert load(name) == WANTED[name]
    assert len(handler.asked) == len(FILES[name])
    assert load(name) == WANTED[name] and len(handler.asked) == len(FILES[name]), "the second time from the cache"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load(name) == WANTED[name], "and without a network"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_can_be_given_as_files(name, tmp_path):
    for file, text in FILES[name].items():
        (tmp_path / benchmarks_fetch._plain(file)).write_text(text, encoding="utf-8")
    assert load(name, str(tmp_path)) == WANTED[name]
    if len(FILES[name]) == 1:
        (path,) = tmp_path.iterdir()
        assert load(name, str(path)) == load(name, path.as_uri()) == WANTED[name]


BROKEN = {
    "parti": "Text\tCategory\nx\ty\n",
    "drawbench": "<!doctype html><html>Sign in</html>",
    "geneval": '{"prompt": "a hut"}\n',
    "geneval2": '{"prompt": "a hut"}\n',
    "t2i-compbench": "<html>\nnot found\n",
    "t2i-compbench++": "<html>\nnot found\n",
    "unigenbench": table([["index", "prompt_en", "sub_dims_en"], ["0", "a hut", "[1]"]]),
    "unigenbench-long": table([["index", "prompt_en"], ["0", "a hut"]]),
    "hpdv2": '{"prompts": ["a hut"]}',
    "dpg": table([DPG, ["1", "", "k", "1", "0", "entity"]]),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_another_layout_is_refused_in_a_line(name, home, monkeypatch):
    url, handler = home
    handler.pages = {f"/{file}": BROKEN[name] for file in FILES[name]}
    at_home(monkeypatch, name, url, 1)
    with pytest.raises(UserError, match=f"^--prompts {re.escape(name)}: .* is not laid out as published: ") as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_another_number_of_prompts_is_refused_from_home_but_not_from_files(home, monkeypatch, tmp_path):
    url, handler = home
    handler.pages = {f"/{file}": text for file, text in FILES["geneval"].items()}
    at_home(monkeypatch, "geneval", url, 2)
    with pytest.raises(UserError, match="gave 1 prompt, and 2 are published"):
        load("geneval")
    (tmp_path / "mine.jsonl").write_text(FILES["geneval"]["evaluation_metadata.jsonl"])
    assert load("geneval", str(tmp_path / "mine.jsonl")) == WANTED["geneval"]


def test_what_cannot_be_had_is_said_in_a_line(home, monkeypatch, tmp_path):
    url, _ = home
    at_home(monkeypatch, "parti", url, 2)
    with pytest.raises(UserError, match=r"PartiPrompts.tsv cannot be fetched \(HTTP 404\)") as caught:
        load("parti")
    assert "--prompts parti=FILE_OR_FOLDER" in str(caught.value)
    at_home(monkeypatch, "parti", "http://127.0.0.1:9/", 2)
    with pytest.raises(UserError, match="refused"):
        load("parti")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        load("parti")
    with pytest.raises(UserError, match="cannot be read"):
        load("parti", str(tmp_path / "nowhere"))
    (tmp_path / "bytes.tsv").write_bytes(b"Prompt\tCategory\n\xff\tx\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        load("parti", str(tmp_path / "bytes.tsv"))


def test_nothing_is_kept_of_what_did_not_arrive(home, monkeypatch, tmp_path):
    url, _ = home
    at_home(monkeypatch, "parti", url, 2)
    with pytest.raises(UserError):
        load("parti")
    assert not (tmp_path / "cache").exists()


def test_homes_are_pinned_where_their_hosts_have_commits():
    for name, known in BENCHMARKS.items():
        assert known.home.startswith("https://") and known.home.endswith("/"), name
        if "githubusercontent" in known.home:
            assert any(len(part) == 40 for part in known.home.split("/")), name

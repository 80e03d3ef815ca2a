"""The one reader of texts and tables: marks, encodings, line ends, quotes, and rows of the wrong length."""

import json

import pytest

from align.data._prompt_files import Item, names_a_source, read
from align.files.texts import Unreadable, decode, lines, read_text, table

TEXT = "a café\na 猫 🐈"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mark_says_the_encoding_and_is_no_text(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT
    for name, text in (
        ("a.txt", TEXT),
        ("a.jsonl", "\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in TEXT.split("\n"))),
        ("a.csv", "prompt\n" + TEXT),
        ("a.tsv", "Prompt\tn\n" + "\n".join(f"{p}\t1" for p in TEXT.split("\n"))),
        ("a.json", json.dumps(TEXT.split("\n"))),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert [item.prompt for item in read(str(tmp_path / name))] == TEXT.split("\n"), name


def test_other_encodings_and_nul_are_refused_by_their_place():
    with pytest.raises(Unreadable, match=r"x: byte 9 \(line 2\) is not UTF-8"):
        decode("plain\ncaf\xe9".encode("latin-1"), "x")
    with pytest.raises(Unreadable, match="x: holds NUL bytes: it is no text, or UTF-16 without its mark"):
        decode("abc".encode("utf-16-le"), "x")
    with pytest.raises(Unreadable, match="is not UTF-16-LE"):
        decode("ab".encode("utf-16") + b"\x00\xd8", "x")


def test_lines_end_at_lf_and_crlf_and_nowhere_else():
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    assert [line for _, line in lines(f"{inside}\r\n\n  second \n", "x")] == [inside, "second"]
    with pytest.raises(Unreadable, match="x: line 1 holds a carriage return that ends no line here"):
        list(lines("a\rb\r", "x"))


def test_cells_keep_their_newlines_and_quotes_belong_to_a_tsv():
    assert table('Prompt , tag\n"a, ""b""\nc",t\n\n,\nd,e\n', "x", ".csv") == [
        (2, {"prompt": 'a, "b"\nc', "tag": "t"}),
        (6, {"prompt": "d", "tag": "e"}),
    ]
    assert table('prompt\ttag\r\n"STOP" on a sign\tt\r\n', "x", ".tsv") == [
        (2, {"prompt": '"STOP" on a sign', "tag": "t"})
    ]
    assert table("a,b\n1,2,,\n", "x", ".csv") == [(2, {"a": "1", "b": "2"})], "what a spreadsheet leaves behind"


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        (".csv", "prompt,tag\nx,y\na, b,c\n", "line 3 has 3 cells and the header 2. Put cells that hold commas"),
        (".csv", 'prompt,tag\n"x\ny",z\na, b,c\n', "line 4 has 3 cells"),
        (".csv", "prompt,tag\na\nb,c\n", "line 2 has 1 cells and the header 2"),
        (".csv", 'prompt,tag\n"STOP" on a sign,y\n', "line 2 is no row of a table"),
        (".csv", 'prompt,tag\n"a,y\nb,z\n', "is no row of a table"),
        (".csv", "Prompt;tag\nx;y\n", "parted by semicolons. Save it with commas"),
        (".csv", "prompt,Prompt \na,b\n", "the column prompt is there twice"),
        (".tsv", "prompt\ttag\na\tb\tc\n", "line 2 has 3 cells and the header 2. Put exactly one tab"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_their_number(suffix, text, said):
    with pytest.raises(Unreadable, match=said):
        table(text, "x", suffix)


def test_every_kind_of_file_says_the_same_with_categories_and_images(tmp_path):
    rows = [{"prompt": "a hut", "tag": "one", "image": "0.png"}, {"prompt": 'a "sea"', "tag": "two", "image": "1.png"}]
    files = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": 'image,prompt,tag\n0.png,a hut,one\n1.png,"a ""sea""",two\n',
        "tsv": 'image\tprompt\ttag\n0.png\ta hut\tone\n1.png\ta "sea"\ttwo\n',
    }
    for kind, text in files.items():
        (tmp_path / f"a.{kind}").write_text(text)
        assert read(str(tmp_path / f"a.{kind}")) == [Item("a hut", "one", "0.png"), Item('a "sea"', "two", "1.png")]
    (tmp_path / "twice.json").write_text('{"0.png": "a", "0.png": "b"}')
    with pytest.raises(Unreadable, match=r"the key '0.png' is there twice"):
        read(str(tmp_path / "twice.json"))


def test_what_is_plainly_a_file_or_a_set_is_no_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my prompts", "cat"):
        (tmp_path / name).mkdir()
    (tmp_path / "my prompts" / "a.txt").write_text("a")
    sources = ["two.jsonl", "My Prompts.TXT", "nowhere/x.tsv", "shapes:report", "animals:train", "./x", "a/b/c", "x/"]
    sources += ["my prompts", "notes.md", "~/x", "..\\x\\y"]
    texts = ["a red circle", "cat", "red/blue", "a cat. A dog.", "a scene: night", "9:16", "U.S.A.", "photo of st.john"]
    texts += ["", "two\nlines.txt x", "x" * 5000, "best:ever"]
    assert [text for text in sources if not names_a_source(text)] == []
    assert [text for text in texts if names_a_source(text)] == []

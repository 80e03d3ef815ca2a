"""Where prompts and categories come from: sets, files, tables, folders, and an even share of each category."""

import json
from collections import Counter

import pytest

from align.errors import UserError
from align.evaluation.benchmarks import Item
from align.evaluation.prompts import load, shares


def test_a_set_of_shapes_has_its_skills(tmp_path):
    items = load("shapes:report", 12)
    assert Counter(item.category for item in items) == dict.fromkeys(
        ("single", "two", "counting", "colour", "position", "attribution"), 2
    )
    assert load("shapes:report", 6) == items[:6]


def test_files_of_every_kind(tmp_path):
    rows = [{"prompt": "a hut", "tag": "one"}, {"prompt": "a sea, far", "category": "two"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "a.csv").write_text('Prompt,Category\na hut,one\n"a sea, far",two\n')
    (tmp_path / "a.tsv").write_text("category\tprompt\none\ta hut\ntwo\ta sea, far\n")
    wanted = [Item("a hut", "one"), Item("a sea, far", "two")]
    for kind in ("jsonl", "csv", "tsv"):
        assert load(str(tmp_path / f"a.{kind}")) == wanted
    (tmp_path / "a.txt").write_text("a hut\n\na sea, far\n")
    assert load(str(tmp_path / "a.txt")) == [Item("a hut"), Item("a sea, far")]
    assert load(["a hut"]) == [Item("a hut")]
    assert load("scenes:report")[0].category == ""


def test_the_files_of_a_folder_are_categories_unless_each_is_a_prompt(tmp_path):
    (tmp_path / "huts.txt").write_text("a hut\ntwo huts\n")
    (tmp_path / "seas.csv").write_text("prompt,category\na sea,deep\n")
    (tmp_path / "notes.md").write_text("not prompts")
    assert load(str(tmp_path)) == [Item("a hut", "huts"), Item("two huts", "huts"), Item("a sea", "deep")]
    single = tmp_path / "single"
    single.mkdir()
    for name in ("0001", "0002"):
        (single / f"{name}.txt").write_text(f"prompt {name}\n")
    assert load(str(single)) == [Item("prompt 0001"), Item("prompt 0002")]


def test_fewer_prompts_are_shared_out_over_the_categories():
    items = [Item(str(i), "a" if i < 6 else "b" if i < 8 else "c") for i in range(9)]
    assert shares(items, 3) == [0, 6, 8]
    assert shares(items, 5) == [0, 1, 6, 7, 8]
    assert shares(items, 7) == [0, 1, 2, 3, 6, 7, 8]
    assert shares(items, 99) == list(range(9))


def test_a_benchmark_by_name_and_by_its_file(tmp_path):
    (tmp_path / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\ta\tb\na hut\tArts\t\t\na sea\tArts\t\t\nx\tFood\t\t\n"
    )
    assert load(f"parti={tmp_path}", 2) == [Item("a hut", "Arts"), Item("x", "Food")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.txt", "cannot be read"),
        ("party", r"Benchmarks: parti, drawbench"),
        ("shapes:final", "there is no set"),
        ("empty.csv", "there are no prompts"),
        ("wrong.csv", "line 2 has no text under the key prompt"),
        ("wrong.jsonl", "line 2 is not JSON"),
        ("folder", "there is no .txt"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("prompt,category\n")
    (tmp_path / "wrong.csv").write_text("text\na hut\n")
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a hut"}\nhut\n')
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=said) as caught:
        load(text)
    assert str(caught.value).startswith("--prompts") and "\n" not in str(caught.value)


def test_prompts_of_the_training_are_counted_and_said(tmp_path):
    from align.config import load_recipe
    from align.evaluation import plan, results

    (tmp_path / "mine.txt").write_text("a red circle\nA  blue STAR\n")
    trained = load_recipe("draft/shapes", {"data": {"name": "prompts", "prompts": str(tmp_path / "mine.txt")}})
    items = [Item(prompt) for prompt in ("a blue star", "a green square", "a red circle")]
    assert plan._seen([trained], items) == 2 and plan._seen([], items) == 0
    made = [f"data.make.prompts={tmp_path / 'mine.txt'}", "data.make.num_prompts=1"]
    assert plan._seen([load_recipe("diffusion_dpo/shapes", made)], items) == 1, "of pairs that the run makes"
    (tmp_path / "mine.txt").unlink()
    assert plan._seen([trained], items) == 0, "as far as they are there"
    told = {"num_prompts": 3, "seen": 2}
    (line,) = results.seen(results.Evaluation.model_construct(**told))
    assert line == "2 of the 3 prompts are among those that were trained on: no held-out scores"
    assert not [*results.seen(results.Evaluation.model_construct(num_prompts=3, seen=0))]

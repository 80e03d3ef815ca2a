"""What is wrong with a table of pictures is said before a model is loaded, and a plan says it too."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pair_toys import pngs, write_parquet
from typer.testing import CliRunner

from align.commands.app import app
from align.config import load_recipe
from align.data import _stored
from align.data._pairs import read_pairs
from align.data.labels import Labels, LabelsConfig
from align.data.preferences import Preferences, PreferencesConfig
from align.errors import UserError


def pairs(path, **changes):
    return Preferences(PreferencesConfig(pairs=str(path), **changes), batch_size=2, seed=0)


def labels(path, **changes):
    return Labels(LabelsConfig(labels=str(path), **changes), batch_size=2, seed=0)


OWN = "prompt,winner,loser\na cat,a.png,b.png\n a dog , b.png,a.png\n"
MAPPED = {"columns": {"prompt": "text", "winner": "good", "loser": "bad"}}
WRONG = {
    "columns of other names": ("pairs.csv", OWN.replace("winner", "best"), {}, "no column winner"),
    "an empty table": ("pairs.csv", "prompt,winner,loser\n", {}, "there is no pair in it"),
    "no picture in a row": ("pairs.tsv", "prompt\twinner\tloser\na\ta.png\t \n", {}, "line 2 needs text under loser"),
    "a tie that is none": ("pairs.csv", "prompt,winner,loser,tie\na,b,c,perhaps\n", {}, "line 2 says tie: 'perhaps'"),
    "a map that is wrong": ("a.csv", OWN, MAPPED, "no column bad, good, text"),
    "no table": ("notes.txt", "a", {}, r"holds no pairs\.jsonl, pairs\.csv or pairs\.tsv"),
    "a line that is none": ("pairs.jsonl", "{", {}, "line 1 is not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_pairs_is_said_by_a_look(tmp_path, case):
    name, text, changes, said = WRONG[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        pairs(tmp_path, **changes).look()
    assert "\n" not in str(error.value)


def test_a_table_of_the_own_columns_needs_no_map(tmp_path):
    (tmp_path / "pairs.csv").write_text(OWN.replace("loser\n", "loser,tie\n").replace("b.png\n", "b.png,\n").replace(
        "a.png\n", "a.png,True\n"))  # fmt: skip
    found = pairs(tmp_path).look()
    assert [(p.prompt, p.winner.path.name, p.loser.path.name, p.tie) for p in found] == [
        ("a cat", "a.png", "b.png", False),
        ("a dog", "b.png", "a.png", True),
    ]
    assert found == read_pairs(tmp_path / "pairs.csv") == read_pairs(tmp_path)
    assert len(pairs(tmp_path, max_rows=1).look()) == 1
    assert [row.good for row in labels(tmp_path / "pairs.csv").look()] == [True, False], "of a pair that is no tie"


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(OWN)
    with pytest.raises(UserError, match=r"a\.txt: is no table of pairs \(\.jsonl, \.csv, \.tsv, \.parquet, \.json\)"):
        pairs(tmp_path / "a.txt").look()


def test_labels_of_one_kind_are_refused_by_a_look(tmp_path):
    (tmp_path / "labels.csv").write_text("image,prompt,label\na.png,a,1\nb.png,b,up\n")
    with pytest.raises(UserError, match="all 2 images are good: there is nothing to tell apart") as error:
        labels(tmp_path).look()
    assert "data.make" not in str(error.value), "nothing is made here"


def test_a_large_table_is_not_read_twice(tmp_path, monkeypatch):
    lines = [json.dumps({"prompt": "a", "winner": "a.png", "loser": "b.png"})] * 3
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    write_parquet(tmp_path / "other" / "a.parquet", pngs(tmp_path, 3), [(1.0, 0.0)] * 2)
    assert len(pairs(tmp_path).look()) == 3 and len(pairs(tmp_path / "other").look()) == 2
    monkeypatch.setattr(_stored, "LARGE", 10)
    assert pairs(tmp_path).look() is None and pairs(tmp_path / "other").look() is None
    with pytest.raises(UserError, match="has no column gone"):
        pairs(tmp_path / "other", columns={"prompt": "gone", "winner": "jpg_0", "loser": "jpg_1"}).look()


def test_a_dry_run_looks(tmp_path):
    (tmp_path / "wrong.csv").write_text(OWN.replace("winner", "best"))
    asked = ("train", "diffusion_dpo/shapes", "data.make=null", "--dry-run", f"data.pairs={tmp_path}/wrong.csv")
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2 and "wrong.csv: it has no column winner (it has best, loser, prompt)" in done.stderr


MAKING = {"make": {"prompts": "shapes:train", "num_prompts": 4, "num_images": 2, "rewards": {"gold": {}}}}


def test_somebodys_own_rows_are_read_where_a_recipe_would_make_some(tmp_path):
    (tmp_path / "good.csv").write_text(OWN)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert PreferencesConfig(pairs=str(folder), **MAKING).making is not None, "an empty folder is to be filled"
    (folder / "pairs.csv").write_text(OWN)
    for place in (tmp_path / "good.csv", folder):
        source = pairs(place, **MAKING)
        assert source.config.making is None and not [*source.config.conflicts({})]
        assert len(source.look()) == 2, "both lines of the table"
    (folder / "settings.json").write_text("{}")
    assert pairs(folder, **MAKING).config.making is not None, "what was made here is checked as such"
    (tmp_path / "labels.csv").write_text("image,prompt,label\na.png,a,1\nb.png,b,up\n")
    with pytest.raises(UserError, match="all 2 images are good"):
        labels(tmp_path / "labels.csv", **MAKING).look()


def test_nothing_is_made_among_somebodys_pictures(tmp_path):
    write_parquet(tmp_path / "table" / "a.parquet", pngs(tmp_path, 3), [(1.0, 0.0)] * 2)
    assert pairs(tmp_path / "table", **MAKING).config.making is None
    (key, said), *_ = PreferencesConfig(pairs=str(tmp_path / "made"), **MAKING).conflicts({})
    assert key == ".pairs" and "holds pictures and no table of pairs, and data.make would draw others beside" in said


def test_the_columns_of_published_pairs_are_known_and_others_are_guessed(tmp_path):
    (tmp_path / "pairs.csv").write_text("caption,chosen,rejected\na cat,a.png,b.png\n")
    (pair,) = pairs(tmp_path).look()
    assert (pair.prompt, pair.winner.path.name, pair.loser.path.name) == ("a cat", "a.png", "b.png")
    (tmp_path / "pairs.csv").write_text("prompt,better,worse\na cat,a.png,b.png\n")
    with pytest.raises(UserError, match=r"such as 'data\.columns=\{prompt: prompt, winner: better, loser: worse\}'"):
        pairs(tmp_path).look()


def test_parquet_of_the_own_columns_needs_no_map(tmp_path):
    images, file = pngs(tmp_path / "made", 3), tmp_path / "held.parquet"
    rows = {"prompt": ["a cat"], "winner": images[:1], "loser": images[1:2]}
    pyarrow.parquet.write_table(pyarrow.table(rows), file)
    (pair,) = pairs(file).look()
    assert pair.prompt == "a cat" and (pair.winner.read(), pair.loser.read()) == (images[0], images[1])
    named = {"caption": ["a cat"], "chosen": ["made/made/0.png"], "rejected": ["made/made/1.png"]}
    pyarrow.parquet.write_table(pyarrow.table(named), tmp_path / "named.parquet")
    (pair,) = pairs(tmp_path / "named.parquet").look()
    assert (pair.winner.read(), pair.loser.read()) == (images[0], images[1]), "paths are relative to the table"
    pyarrow.parquet.write_table(pyarrow.table({**rows, "tie": [True]}), file)
    with pytest.raises(UserError, match="a column tie is read of"):
        pairs(file).look()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "good": images[:1], "bad": images[1:2]}), file)
    with pytest.raises(UserError, match=r"such as 'data\.columns=\{prompt: text, winner: good, loser: bad\}'"):
        pairs(file).look()


def test_a_look_reads_the_rows_of_a_map(tmp_path):
    pngs(tmp_path / "made", 2)
    (tmp_path / "a.csv").write_text(
        "text,good,bad\na cat,made/made/0.png,made/made/1.png\na dog,made/made/0.png,gone.png\n"
    )
    source = pairs(tmp_path / "a.csv", **MAPPED)
    rows = source.look()
    assert [row.prompt for row in rows] == ["a cat", "a dog"]
    assert [picture.path.exists() for row in rows for picture in row.pictures] == [True, True, True, False]
    assert (
        rows[1].loser.path == tmp_path / "gone.png" and len(pairs(tmp_path / "a.csv", max_rows=1, **MAPPED).look()) == 1
    )
    lines = [json.dumps({"pic": f"made/made/{n}.png", "words": "a", "liked": n}) for n in (0, 1)]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    columns = {"image": "pic", "prompt": "words", "label": "liked"}
    assert [row.good for row in labels(tmp_path / "l.jsonl", columns=columns).look()] == [False, True]
    (tmp_path / "l.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match="all 1 images are bad"):
        labels(tmp_path / "l.jsonl", columns=columns).look()


def test_a_look_that_meets_the_disk_says_so(tmp_path, monkeypatch):
    def full(config, folder):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.csv").write_text("text,good,bad\na cat,a.png,b.png\n")
    monkeypatch.setattr(_stored, "bring", full)
    with pytest.raises(UserError, match=r"a\.csv: cannot be read, or written to .* \(No space left on device\)"):
        pairs(tmp_path / "a.csv", **MAPPED).look()


def test_pictures_that_a_mapped_table_holds_are_there_in_a_look(tmp_path):
    data = [{"bytes": image, "path": None} for image in pngs(tmp_path, 2)]
    columns = {"text": ["a cat"], "good": data[:1], "bad": data[1:]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    source = pairs(tmp_path / "saved", **MAPPED)
    (row,) = source.look()
    assert [picture.read() for picture in row.pictures] == [image["bytes"] for image in data]
    assert not [*source.notes([row])], "they are two"


def test_a_dry_run_counts_the_rows_of_a_map(tmp_path):
    pngs(tmp_path / "made", 2)
    (tmp_path / "a.csv").write_text(
        "text,good,bad\na cat,made/made/0.png,made/made/1.png\na dog,made/made/0.png,gone.png\n"
    )
    columns = "data.columns={prompt: text, winner: good, loser: bad}"
    asked = ("train", "diffusion_dpo/shapes", "--dry-run", f"data.pairs={tmp_path}/a.csv", columns)
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert f"2 pairs in {tmp_path}/a.csv, 1 picture missing, such as {tmp_path}/gone.png, fewer than" in done.stdout


def test_a_folder_without_labels_says_what_they_are(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no table of labels \(labels\.jsonl, .*Nor can it be read as pairs: "
    ) as error:
        labels(tmp_path).look()
    assert "\n" not in str(error.value) and '"label": 1' in str(error.value)


def test_pairs_given_as_labels_are_led_to_the_layout(tmp_path):
    (tmp_path / "t.csv").write_text(OWN)
    with pytest.raises(UserError, match=r"columns of pairs, winner and loser.*Set data\.layout=pairs"):
        labels(tmp_path / "t.csv").look()
    assert len(labels(tmp_path / "t.csv", layout="pairs").look()) == 4
    with pytest.raises(UserError, match=r"data\.pairs: unknown key\. Did you mean labels\?"):
        load_recipe("kto/shapes", ["data.pairs=t.csv"])
    with pytest.raises(UserError, match=r"data\.labels: unknown key\. Did you mean pairs\?"):
        load_recipe("diffusion_dpo/shapes", ["data.labels=t.csv"])

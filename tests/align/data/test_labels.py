"""Labelled images: read from tables and from pairs, made by a judge, cached, and drawn."""

import json
from collections import Counter

import pytest
import torch
from label_toys import labelled, write_labels
from pair_toys import picture, policy_on, write_pairs

from align.config import load_recipe
from align.data._labels import read_labels
from align.data._make_labels import LabelsMakeConfig
from align.data.labels import Labels, LabelsConfig
from align.errors import UserError
from align.run import prepare

ROWS = [("a.png", "a cat", "1"), ("b.png", "a dog", "0"), ("c.png", "a cow", "up"), ("d.png", "an ox", "")]


@pytest.fixture(scope="module")
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def table(folder, suffix, rows=ROWS, header=("image", "caption", "label")):
    """The same rows as a table of this kind; in parquet the images are cells."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, *_) in enumerate(rows):
        picture(folder / name, i)
    file = folder / f"labels{suffix}"
    records = [dict(zip(header, row, strict=True)) for row in rows]
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name, *_ in rows]
        numbers = [{"1": 1.0, "up": 1.0, "0": 0.0, "": None}[label] for *_, label in rows]
        columns = {"Image": cells, "caption": [row[1] for row in rows], "label": numbers}
        pq.write_table(pa.table(columns), file)
    else:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        file.write_text("\n".join(mark.join(row) for row in (header, *rows)) + "\n")
    return folder


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_table_is_read_by_its_kind(tmp_path, suffix):
    folder, left_out = table(tmp_path, suffix), Counter()
    rows = read_labels(folder, left_out=left_out)
    assert [(row.prompt, row.good) for row in rows] == [("a cat", True), ("a dog", False), ("a cow", True)]
    assert [row.picture.read() for row in rows] == [
        (folder / name).read_bytes() for name in ("a.png", "b.png", "c.png")
    ]
    assert left_out == {"not judged": 1}
    assert read_labels(folder / f"labels{suffix}") == rows, "the file itself is a place too"


def test_pairs_are_labels_too(tmp_path):
    folder, left_out = write_pairs(tmp_path, 2), Counter()
    rows = read_labels(folder, left_out=left_out)
    assert [(row.prompt, row.picture.path.name, row.good) for row in rows] == [
        ("number 0", "0.png", True),
        ("number 0", "1.png", False),
        ("number 1", "2.png", True),
        ("number 1", "3.png", False),
    ]
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    tie = json.dumps(json.loads(lines[1]) | {"tie": True})
    (folder / "pairs.jsonl").write_text(f"{lines[0]}\n{tie}\n")
    assert len(read_labels(folder, left_out=left_out)) == 2 and left_out["ties"] == 1
    table(folder, ".csv")
    assert len(read_labels(folder)) == 3 and len(read_labels(folder, "pairs")) == 2, "a table comes first"


WRONG = {
    "a score": ("image,prompt,label\na.png,x,0.7\n", r"line 2 has the label '0\.7', which is neither good"),
    "a word": ("image,prompt,label\na.png,x,maybe\n", "has the label 'maybe'"),
    "no label": ("image,prompt\na.png,x\n", r"no column label \(it has image, prompt\)\. Say .* label: COLUMN\}'"),
    "other names": (
        "picture,thumb,prompt\na.png,1,x\n",
        "'data.columns={image: picture, prompt: prompt, label: thumb}'",
    ),
    "no image": ("image,prompt,label\n,x,1\n", "line 2 has no path under image"),
    "a cell too few": ("image,prompt,label\na.png,1\n", "line 2 has 2 cells and the header 3"),
    "empty": ("image,prompt,label\n", "there is no labelled image in it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_line(tmp_path, case):
    text, said = WRONG[case]
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_labels(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_any_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no table of labels .*Nor can it be read as pairs"):
        read_labels(tmp_path)
    with pytest.raises(UserError, match=r"it holds no labels\.jsonl, labels\.csv"):
        read_labels(write_pairs(tmp_path), "table")


def test_what_is_cached_is_what_the_model_says(policy, tmp_path):
    source = labelled(policy, write_labels(tmp_path), batch_size=6)
    batch = next(iter(source))
    pictures = batch.load()
    from rewards._images import read_pil, tensor

    for row, number in enumerate(batch.rows):
        image = tensor(read_pil(tmp_path / f"images/{number}.png"))[None]
        torch.testing.assert_close(pictures.image.mean[row], policy.model.codec.encode(image).mean[0])
    expected = policy.model.text.encode(batch.prompts).tensors["text"]
    torch.testing.assert_close(pictures.cond.tensors["text"], expected)
    dropped = pictures.conds([True] + [False] * 5).tensors["text"]
    torch.testing.assert_close(dropped[0], pictures.uncond.tensors["text"][0])
    torch.testing.assert_close(dropped[1:], expected[1:])
    assert batch.good == tuple(number % 2 == 0 for number in batch.rows)


def test_a_share_of_good_ones_is_in_every_batch_and_all_are_seen(policy, tmp_path):
    source = labelled(policy, write_labels(tmp_path, 8), batch_size=4, good_share=0.75)
    stream = iter(source)
    batches = [next(stream) for _ in range(8)]
    assert [sum(batch.good) for batch in batches] == [3] * 8
    assert {row for batch in batches for row in batch.rows} == set(range(8))
    assert len({batch.good for batch in batches}) > 1, "in places of their own"


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_source_that_was_stopped_goes_on(policy, tmp_path, share):
    folder = write_labels(tmp_path)
    stream = iter(labelled(policy, folder, good_share=share))
    whole = [next(stream) for _ in range(6)]
    first = labelled(policy, folder, good_share=share)
    begun = iter(first)
    for _ in range(3):
        next(begun)
    second = labelled(policy, folder, good_share=share)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = iter(second)
    for batch in whole[3:]:
        again = next(rest)
        assert (again.rows, again.indices, again.step, again.others) == (
            batch.rows,
            batch.indices,
            batch.step,
            batch.others,
        )


def test_labels_of_one_kind_are_refused(policy, tmp_path):
    with pytest.raises(UserError, match="all 6 images are good: there is nothing to tell apart"):
        labelled(policy, write_labels(tmp_path, label=1))


def test_damaged_ones_are_left_out_or_refused(policy, tmp_path):
    folder, said = write_labels(tmp_path), []
    (folder / "images/0.png").write_bytes(b"no picture")
    (folder / "images/1.png").unlink()
    source = labelled(policy, folder, said=said)
    assert "data: 4 labels, left out: 1 damaged, 1 missing" in said and "  2 good, 2 bad" in said
    assert {row for batch in [next(iter(source))] for row in batch.rows} == {2, 3, 4, 5}
    with pytest.raises(UserError, match=r"2 of 6 labels|1 of 6 labels.*set data\.damaged to skip"):
        labelled(policy, folder, damaged="refuse")


def test_what_cannot_work_is_refused(tmp_path):
    found = dict(LabelsConfig(labels=str(tmp_path / "none")).conflicts({}))
    assert "there is no such file or folder" in found[".labels"]
    from align.training.trainer import TrainConfig

    config = LabelsConfig(labels=str(tmp_path), good_share=0.9)
    assert "leaves no image of one kind" in dict(config.conflicts({"train": TrainConfig(batch_size=4)}))[".good_share"]
    assert not list(config.conflicts({"train": TrainConfig(batch_size=10)}))


@pytest.fixture(scope="module")
def recipe(tiny_sd_factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("make")
    tiny_sd_factory().save_pretrained(folder / "model")
    judged = {"prompts": ["a cat", "two", "x"], "num_images": 3, "rewards": {"brightness": {}}, "batch_size": 6}
    return {
        "model": {"name": "sd", "checkpoint": str(folder / "model")},
        "objective": "kto",
        "data": {"name": "labels", "labels": str(folder / "labels"), "make": judged},
        "sampling": {"num_steps": 2, "guidance_scale": 2.0},
    }


def made(recipe, folder, **make):
    data = recipe["data"] | {"labels": str(folder), "make": recipe["data"]["make"] | make}
    prepare(recipe | {"data": data}, pairs_only=True)
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_a_judge_labels_by_its_median_or_a_threshold(recipe, tmp_path):
    records = made(recipe, tmp_path / "median")
    scores = sorted(record["score"] for record in records)
    assert len(records) == 9 and sum(record["label"] for record in records) == 5
    assert all(record["label"] == (record["score"] >= scores[4]) for record in records)
    rows = read_labels(tmp_path / "median")
    assert [row.good for row in rows] == [bool(record["label"]) for record in records]
    assert all(row.picture.path.is_file() for row in rows)
    limit = (scores[6] + scores[7]) / 2
    assert sum(record["label"] for record in made(recipe, tmp_path / "set", threshold=limit)) == 2
    near = LabelsMakeConfig(prompts=["a"], rewards={"brightness": {}}, threshold=0.5, margin=0.2)
    kept = near.table([{"score": s} for s in (0.2, 0.4, 0.6, 0.8)])
    assert [(record["score"], record["label"]) for record in kept] == [(0.2, 0), (0.8, 1)]


def test_labels_come_from_a_recipe_of_pairs_too(recipe, tmp_path):
    """align pairs RECIPE --labels: the same images and the same judge, labelled and not paired."""
    expected = made(recipe, tmp_path / "own", threshold="median")
    pairs = recipe | {
        "objective": "diffusion_dpo",
        "data": {
            "name": "preferences",
            "pairs": str(tmp_path / "pairs"),
            "make": recipe["data"]["make"] | {"choose": "all"},
        },
    }
    folder = prepare(pairs, pairs_only=True, threshold="median")
    assert folder == tmp_path / "pairs-labels"
    assert [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()] == expected
    assert not (tmp_path / "pairs").exists()


def test_a_plan_needs_no_labels(recipe):
    from align.plan import rehearse

    for objective, forward in (("kto", 12), ({"name": "dro", "bound": "clamp"}, 8)):  # kto's baseline is a pass more
        found = rehearse(load_recipe(recipe | {"objective": objective, "train": {"batch_size": 4}}))
        assert (found.rows, found.calls.forward, found.calls.backward) == (4, forward, 4)


def test_the_source_names_its_folder():
    assert Labels(LabelsConfig(labels="~/x"), batch_size=2, seed=0).folder.is_absolute()


def test_a_threshold_on_the_command_line(monkeypatch):
    from typer.testing import CliRunner

    from align.commands.app import app

    asked = []
    monkeypatch.setattr("align.run.prepare", lambda *args, **said: asked.append(said["threshold"]) or "folder")
    for words in (["--labels"], ["--labels", "--threshold", "0.5"], []):
        assert CliRunner().invoke(app, ["pairs", "kto/shapes", *words]).exit_code == 0
    assert asked == ["median", 0.5, None]
    for words, said in (
        (["--threshold", "1"], "Give --labels too"),
        (["--labels", "--threshold", "nan"], "is no number"),
    ):
        refused = CliRunner().invoke(app, ["pairs", "kto/shapes", *words])
        assert refused.exit_code == 2 and said in refused.output and len(asked) == 3

"""Datasets by the `datasets` library: local ones in every format, one on a local stand-in of the Hub, and what is said
of those that cannot be read."""

import io
import json
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import serving
from pair_toys import picture, policy_on, prepared

from align.config import load_recipe
from align.data import _datasets
from align.data._columns import FORMS, KNOWN, form, problem
from align.data._dataset_config import is_hub
from align.data._datasets import brought, left_out, pinned
from align.data._labels import read_labels
from align.data._pairs import read_pairs
from align.data.captioned import Captioned, CaptionedConfig
from align.data.labels import LabelsConfig
from align.data.preferences import Preferences, PreferencesConfig
from align.data.prompts import Prompts, PromptsConfig
from align.errors import UserError

COLUMNS = {"prompt": "text", "winner": "best", "loser": "worst"}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """The library's cache and ours in a folder of the test."""
    import datasets

    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(_datasets, "DATASETS", folder / "ours")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "theirs")
    datasets.disable_progress_bars()
    return folder / "ours"


def png(folder, number) -> bytes:
    picture(folder / f"{number}.png", number)
    return (folder / f"{number}.png").read_bytes()


def table(folder, rows=3):
    """{column: values} with pictures as bytes."""
    images = [png(folder, i) for i in range(rows + 1)]
    return {"text": [f"prompt {i}" for i in range(rows)], "best": images[1:], "worst": images[:-1]}


def test_the_maps_of_known_datasets_are_whole():
    for name, known in KNOWN.items():
        assert problem("pairs", known.columns) is None, name
        assert is_hub(known.hub) and is_hub(name)
    assert form("pairs", {"prompt": "a"}) is None
    assert all(form(kind, dict.fromkeys(names, "x")) == names for kind, forms in FORMS.items() for names in forms)


def test_parquet_by_columns_is_read_where_it_lies(tmp_path, caches):
    data = table(tmp_path / "made")
    pyarrow.parquet.write_table(pyarrow.table(data), tmp_path / "a.parquet")
    pairs = read_pairs(tmp_path, columns=COLUMNS)
    assert [pair.prompt for pair in pairs] == data["text"]
    assert [pair.winner.read() for pair in pairs] == data["best"] and pairs[0].winner.path.name == "a.parquet"
    assert not caches.exists(), "nothing is copied"
    with pytest.raises(UserError, match=r"has no column gone \(it has best, text, worst\).*data\.columns"):
        read_pairs(tmp_path, columns={**COLUMNS, "winner": "gone"})


def test_parquet_may_name_files(tmp_path):
    data = table(tmp_path / "made", 2)
    cells = {"text": data["text"], "best": ["made/1.png", "made/2.png"], "worst": ["made/0.png", "made/1.png"]}
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "a.parquet")
    pairs = read_pairs(tmp_path / "a.parquet", columns=COLUMNS)
    assert [pair.winner.read() for pair in pairs] == data["best"]
    cells["best"][0] = "../outside.png"
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "b.parquet")
    with pytest.raises(OSError, match="outside the folder"):
        read_pairs(tmp_path / "b.parquet", columns=COLUMNS)[0].winner.read()


def test_the_first_rows_of_a_table_that_lies_here(tiny_sd_factory, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(table(tmp_path / "made")), tmp_path / "a.parquet")
    policy = policy_on(tiny_sd_factory())
    for most, found in ((2, 2), (9, 3)):
        source = prepared(policy, tmp_path / "a.parquet", columns=COLUMNS, max_rows=most, cache=str(tmp_path / "cache"))
        assert len(source.rows) == found


def test_open_image_preferences_are_known_by_their_columns(tmp_path):
    data = table(tmp_path / "made", 2)
    cells = {"prompt": data["text"], "chosen": data["best"], "rejected": data["worst"]}
    pyarrow.parquet.write_table(pyarrow.table(cells), tmp_path / "train-0.parquet")
    assert [pair.loser.read() for pair in read_pairs(tmp_path)] == data["worst"]


def test_hpdv3s_paths_are_winner_and_loser(tmp_path):
    rows = [{"prompt": "a", "path1": "x/1.png", "path2": "x/0.png"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (pair,) = read_pairs(tmp_path, "hpdv3")
    assert (pair.winner.path, pair.loser.path) == (tmp_path / "images/x/1.png", tmp_path / "images/x/0.png")


def test_ranks_are_pairs_of_every_two_of_a_group(tmp_path):
    """ImageRewardDB: several images of a prompt, 1 is the best; equal ranks are a tie."""
    rows = {
        "prompt_id": ["p", "q", "p", "p"],
        "prompt": ["a cat", "a dog", "a cat", "a cat"],
        "image_path": ["0.png", "1.png", "2.png", "3.png"],
        "rank": [2, 1, 1, 2],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "metadata-train.parquet")
    found = [(p.winner.path.name, p.loser.path.name, p.tie) for p in read_pairs(tmp_path)]
    assert found == [("2.png", "0.png", False), ("0.png", "3.png", True), ("2.png", "3.png", False)]


def pickapic(folder):
    """Pick-a-Pic v2: pictures in the table, labels 1 and 0, both 0.5 for a tie; not every row was judged."""
    a, b, c = (png(folder / "made", i) for i in range(3))
    rows = [  # caption, jpg_0, jpg_1, label_0, label_1, has_label
        ("first", a, b, 0.0, 1.0, True),
        ("tie", a, c, 0.5, 0.5, True),
        ("nobody", a, b, 0.0, 0.0, False),
        ("unknown", a, b, None, float("nan"), True),
        (None, a, b, 1.0, 0.0, True),
        ("gone", a, None, 1.0, 0.0, True),
        ("last", c, b, 1.0, 0.0, True),
    ]
    names = ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label")
    cells = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    cells |= {"are_different": [True] * 7, "best_image_uid": ["x"] * 7, "model_0": ["y"] * 7, "ranking_id": [*range(7)]}
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(cells), data)
    wanted = [("first", b, a, False), ("tie", a, c, True), ("last", c, b, False)]
    return {"data/train-00000-of-00001-0a.parquet": data.getvalue()}, wanted, {
        "not judged": 2, "without a prompt": 1, "without a picture": 1,
    }  # fmt: skip


def hpdv2(folder):
    """HPDv2: two paths and two labels in lists, the pictures in train/."""
    rows = [
        {"prompt": "first", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "u"},
        {"prompt": "tie", "file_path": ["0.jpg", "2.jpg"], "human_preference": [1, 1], "user_hash": "u"},
        {"prompt": " ", "file_path": ["0.jpg", "1.jpg"], "human_preference": [1, 0], "user_hash": "u"},
        {"prompt": "half", "file_path": ["0.jpg", "1.jpg"], "human_preference": [1], "user_hash": "u"},
    ]
    a, b, c = ((f"train/{i}.jpg", png(folder / "made", i)) for i in range(3))
    wanted = [("first", b[1], a[1], False), ("tie", a[1], c[1], True)]
    return {"train.json": json.dumps(rows).encode(), **dict((a, b, c))}, wanted, {
        "without a prompt": 1, "not judged": 1,
    }  # fmt: skip


def hpdv3(folder):
    """HPDv3: the preferred path and the other one; a confidence that may be null."""
    more = {"confidence": None, "choice_dist": [3, 1], "model1": "x", "model2": "y"}
    rows = [
        {"prompt": "first", "path1": "images/b/1.jpg", "path2": "images/a/0.jpg", **more},
        {"prompt": "last", "path1": "a/2.jpg", "path2": "a/0.jpg", **more},
        {"prompt": None, "path1": "a/2.jpg", "path2": "a/0.jpg", **more},
    ]
    a, b, c = (png(folder / "made", i) for i in range(3))
    files = {"train.json": json.dumps(rows).encode(), "images/a/0.jpg": a, "images/b/1.jpg": b, "images/a/2.jpg": c}
    return files, [("first", b, a, False), ("last", c, a, False)], {"without a prompt": 1}


def imagerewarddb(folder):
    """ImageRewardDB: an image a row, ranked among those of its prompt; a rank may be shared, or missing."""
    cells = {
        "image_path": ["images/train/0.webp", "images/train/1.webp", "images/train/2.webp", "images/train/0.webp"],
        "prompt_id": ["p", "p", "p", "q"], "prompt": ["a", "a", "a", "alone"], "rank": [2, 1, None, 1],
        "classification": ["x"] * 4, "image_amount_in_total": [3, 3, 3, 1], "overall_rating": [4] * 4,
    }  # fmt: skip
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(cells), data)
    a, b, c = ((f"images/train/{i}.webp", png(folder / "made", i)) for i in range(3))
    return {"metadata-train.parquet": data.getvalue(), **dict((a, b, c))}, [("a", b[1], a[1], False)], {
        "not judged": 2,
    }  # fmt: skip


def open_image_preferences(folder):
    """Open Image Preferences, binarized: pictures as the library writes them, {bytes, path}."""
    a, b, c = ({"bytes": png(folder / "made", i), "path": None} for i in range(3))
    cells = {"prompt": ["first", "last"], "chosen": [b, c], "rejected": [a, a], "chosen_model": ["x"] * 2}
    cells |= {"category": ["Anime", None], "num_annotations": [3, 1]}
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(cells), data)
    found = [("first", b["bytes"], a["bytes"], False), ("last", c["bytes"], a["bytes"], False)]
    return {"data/train-00000-of-00001.parquet": data.getvalue()}, found, {}


def told(pairs):
    return [(pair.prompt, pair.winner.read(), pair.loser.read(), pair.tie) for pair in pairs]


@pytest.mark.parametrize("layout", [pickapic, hpdv2, hpdv3, imagerewarddb, open_image_preferences])
def test_a_copy_of_a_known_dataset_with_ties_and_odd_rows(layout, tmp_path):
    files, wanted, odd = layout(tmp_path)
    for name, content in files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    left: Counter[str] = Counter()
    pairs = read_pairs(tmp_path / "copy", "hpdv3" if layout is hpdv3 else "auto", left)
    if layout is pickapic:  # a picture that is missing in a table is found out when pictures are read
        with pytest.raises(OSError, match="row 5 holds no jpg_1"):
            pairs.pop(2).loser.read()
        del odd["without a picture"]
    assert told(pairs) == wanted and dict(left) == odd


def test_a_table_of_paths_is_brought_by_columns(tmp_path):
    for i in range(2):
        png(tmp_path / "images", i)
    rows = [{"text": "a", "best": "images/1.png", "worst": "images/0.png"}, {"text": None, "best": "x", "worst": "y"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PreferencesConfig(pairs=str(tmp_path / "rows.jsonl"), columns=COLUMNS)
    folder = brought(config)
    (pair,) = read_pairs(folder)
    assert pair.winner.path == tmp_path / "images/1.png", "a picture that is here stays where it is"
    assert left_out(folder) == {"without a prompt": 1}
    before = (folder / "pairs.jsonl").stat()
    assert brought(config) == folder and (folder / "pairs.jsonl").stat() == before, "once"


def test_processes_that_want_it_at_once_bring_it_once(tmp_path, caches, monkeypatch):
    (tmp_path / "t.csv").write_text("words\na cat\na dog\n")
    config = PromptsConfig(prompts=str(tmp_path / "t.csv"), columns={"prompt": "words"})
    bring, began, second = _datasets.bring, [], Event()

    def slowly(config, folder):
        began.append(folder)
        if len(began) > 1:
            second.set()
        second.wait(0.5)  # until another one is at it too, which is not to be
        bring(config, folder)

    monkeypatch.setattr(_datasets, "bring", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: brought(config), range(2))
    assert one == other and len(began) == 1
    assert [path.name for path in caches.iterdir()] == [one.name]


def test_what_save_to_disk_wrote_is_brought(tmp_path):
    import datasets

    data = table(tmp_path / "made")
    features = datasets.Features(
        {"text": datasets.Value("string"), "best": datasets.Image(), "worst": datasets.Image()}
    )
    cells = data | {side: [{"bytes": b, "path": None} for b in data[side]] for side in ("best", "worst")}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(tmp_path / "saved")
    config = PreferencesConfig(pairs=str(tmp_path / "saved"), columns=COLUMNS, max_rows=2)
    source, said, counts = Preferences(config, batch_size=1, seed=0), [], Counter()
    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    pairs = source.read(counts, SimpleNamespace(accelerator=alone, say=said.append))
    assert [pair.winner.read() for pair in pairs] == data["best"][:2], "the bytes as they were"
    assert len(list((pairs[0].winner.path.parent).iterdir())) == 3, "a picture of two rows is kept once"
    assert "read by `datasets`" in said[0]


def test_webdataset_shards_are_captioned_pictures(tmp_path):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for i in range(2):
            for ending, data in (("png", png(tmp_path / "made", i)), ("txt", f"caption {i}".encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    source = tmp_path / "shard-000000.tar"
    config = CaptionedConfig(folder=str(source), columns={"image": "png", "caption": "txt"})
    assert not list(config.conflicts({}))
    found = Captioned(config, batch_size=2, seed=0)
    assert sorted(found.all_prompts()) == ["caption 0", "caption 1"]
    assert next(iter(found)).images().shape[:2] == (2, 3)


def test_names_in_a_shard_lead_nowhere_else(tmp_path, caches):
    """Members called ../../evil and /.../evil are pictures of the cache like any other, or are refused."""
    place, names = tmp_path / "a/b", ("../../evil", str(tmp_path / "evil"), "0000")
    place.mkdir(parents=True)
    with tarfile.open(place / "0.tar", "w") as tar:
        for name in names:
            for ending, data in (("png", png(tmp_path / "made", 0)), ("txt", b"a star")):
                entry = tarfile.TarInfo(f"{name}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    before = {*tmp_path.rglob("*")}
    config = CaptionedConfig(folder=str(place / "0.tar"), columns={"image": "png", "caption": "txt"})
    found = Captioned(config, batch_size=1, seed=0)
    assert len(found.files) >= 1 and all(file.resolve().is_relative_to(caches.resolve()) for file in found.files)
    assert {*tmp_path.rglob("*")} == before and not [*tmp_path.rglob("evil*")]


def test_an_imagefolder_is_captioned_pictures(tmp_path):
    for i in range(2):
        png(tmp_path / "set", i)
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\n0.png,nought\n1.png,one\n")
    found = Captioned(
        CaptionedConfig(folder=str(tmp_path / "set"), columns={"image": "image", "caption": "text"}),
        batch_size=2,
        seed=0,
    )
    assert sorted(found.all_prompts()) == ["nought", "one"]


def test_labels_and_prompts_by_columns(tmp_path):
    png(tmp_path, 0)
    (tmp_path / "t.csv").write_text("pic,words,liked\n0.png,a cat,1\n0.png,a dog,0\n")
    labels = LabelsConfig(labels=str(tmp_path / "t.csv"), columns={"image": "pic", "prompt": "words", "label": "liked"})
    assert [(row.prompt, row.good) for row in read_labels(brought(labels))] == [("a cat", True), ("a dog", False)]
    prompts = PromptsConfig(prompts=str(tmp_path / "t.csv"), columns={"prompt": "words"}, max_rows=1)
    assert Prompts(prompts, batch_size=1, seed=0).prompts == ["a cat"]


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ({"pairs": "nobody/nothing"}, ".columns", "there is no folder nobody/nothing here"),
        ({"pairs": "pickapic_v2", "streaming": True}, ".max_rows", "streaming would never end"),
        ({"pairs": "nobody/x", "columns": {"prompt": "a", "winner": "b"}}, ".columns", "pairs need prompt, winner"),
        ({"pairs": "nobody/x", "columns": {**COLUMNS, "victor": "b"}}, ".columns", "victor is nothing that pairs have"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(settings, key, said):
    ((found, text),) = PreferencesConfig(**settings).conflicts({})
    assert found == key and said in text


def test_a_file_that_is_none_is_one_line_and_leaves_nothing(tmp_path, caches):
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    config = CaptionedConfig(folder=str(tmp_path / "bad.tar"), columns={"image": "png", "caption": "txt"})
    with pytest.raises(UserError, match="`datasets` cannot read it") as error:
        Captioned(config, batch_size=1, seed=0)
    assert "\n" not in str(error.value) and not list(caches.iterdir())


@pytest.fixture
def hub(monkeypatch):
    import datasets
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        for place, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
            monkeypatch.setattr(place, name, hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_on_the_hub_is_brought_at_the_commit_that_the_recipe_keeps(hub, tmp_path, streaming):
    data, file = table(tmp_path / "made"), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(data), file)
    hub.add_dataset("some/pairs", {"data/train-00000-of-00001.parquet": file.getvalue()})
    more = {"streaming": True, "max_rows": 2} if streaming else {}
    config = pinned(PreferencesConfig(pairs="some/pairs", columns=COLUMNS, **more))
    assert config.revision == hub.repositories["some/pairs"].commits[-1]
    pairs = read_pairs(brought(config))
    assert [pair.winner.read() for pair in pairs] == data["best"][: 2 if streaming else 3]
    hub.add_dataset("some/pairs", {"data/train-00000-of-00001.parquet": b"another"})
    assert len(read_pairs(brought(config))) == len(pairs), "the commit that is pinned, and what was brought"
    assert pinned(config) is config


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", [pickapic, open_image_preferences])
def test_a_known_dataset_from_the_hub_by_its_name(layout, hub, tmp_path, streaming):
    files, wanted, odd = layout(tmp_path)
    hub.add_dataset(KNOWN[layout.__name__].hub, files)
    config = pinned(PreferencesConfig(pairs=layout.__name__, streaming=streaming, max_rows=7))
    assert config.revision == hub.repositories[KNOWN[layout.__name__].hub].commits[-1]
    folder = brought(config)
    assert told(read_pairs(folder)) == wanted and left_out(folder) == odd


def test_a_dataset_that_is_not_there_is_one_line(hub):
    with pytest.raises(UserError, match="the dataset nobody/nothing cannot be had from the Hub") as error:
        pinned(PreferencesConfig(pairs="nobody/nothing", columns=COLUMNS))
    assert "\n" not in str(error.value)


def test_a_recipe_takes_a_dataset_by_its_name():
    recipe = load_recipe("diffusion_dpo/sd15", {"data": {"name": "preferences", "pairs": "pickapic_v2"}})
    assert recipe.data.from_hub()  # type: ignore[attr-defined]

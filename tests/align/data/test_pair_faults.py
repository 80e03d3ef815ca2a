"""Pairs as people's tools leave them: missing labels, splits, image columns, odd pictures; and what is said of them."""

import json
import shutil
import struct
from collections import Counter

import pytest
import torch
from pair_toys import picture, pngs, policy_on, prepared, write_pairs, write_parquet
from PIL import Image

from align.data._pairs import read_pairs
from align.data._pictures import shards, split_of
from align.errors import UserError

NAN = float("nan")


@pytest.fixture(scope="module")
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def test_a_label_that_is_missing_is_no_judgement(policy, tmp_path):
    """null, NaN, and has_label false or NaN beside them; a tie is one."""
    labels = [(1.0, 0.0), (0.0, 1.0), (NAN, NAN), (0.5, 0.5), (1.0, NAN), (1.0, 0.0)]
    write_parquet(tmp_path / "a.parquet", pngs(tmp_path, 7), labels)
    counts: Counter[str] = Counter()
    pairs = read_pairs(tmp_path, left_out=counts)
    assert [pair.prompt for pair in pairs] == ["prompt 0", "prompt 1", "prompt 3", "prompt 5"]
    assert [pair.tie for pair in pairs] == [False, False, True, False] and counts == {"not judged": 2}
    said = []
    prepared(policy, tmp_path, said=said)
    assert "data: 3 pairs, left out: 2 not judged, 1 ties" in said
    columns = {"has_label": [1.0, NAN, 0.0, None, 1.0, 1.0], "caption": ["a", "b", "c", None, "e", " "]}
    write_parquet(tmp_path / "a.parquet", pngs(tmp_path, 7), labels, **columns)
    counts.clear()
    assert [pair.prompt for pair in read_pairs(tmp_path, left_out=counts)] == ["a", "b"]
    assert counts == {"not judged": 2, "without a prompt": 2}


@pytest.mark.parametrize("missing", [[None, None], [NAN, NAN], [1, None]])
def test_hpdv2s_missing_preference_is_none(tmp_path, missing):
    records = [
        {"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]},
        {"prompt": "b", "file_path": ["0.png", "1.png"], "human_preference": missing},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    assert [pair.prompt for pair in read_pairs(tmp_path)] == ["a"]


def test_labels_that_are_no_numbers_and_a_folder_without_judgements_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", pngs(tmp_path, 3), [("yes", "no"), ("no", "yes")])
    with pytest.raises(UserError, match=r"a.parquet: row 0: the label 'yes' is no number"):
        read_pairs(tmp_path)
    write_parquet(tmp_path / "a.parquet", pngs(tmp_path, 3), [(None, None), (NAN, 1.0)])
    with pytest.raises(UserError, match=r"there is no pair in it \(2 not judged\)"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "winner": "x", "loser": "y", "tie": NaN}\n')
    with pytest.raises(UserError, match="line 1 says tie: nan"):
        read_pairs(tmp_path)


NAMES = [
    "train-00000-of-00002-0123456789abcdef.parquet",
    "train-00001-of-00002-0123456789abcdef.parquet",
    "validation-00000-of-00001.parquet",
    "test-00000-of-00001.parquet",
    "validation_unique-00000-of-00001.parquet",
    "test_unique-00000-of-00001.parquet",
    "._train-00000-of-00002-0123456789abcdef.parquet",
]


def test_of_a_downloaded_dataset_the_split_train_is_read(policy, tmp_path):
    images = pngs(tmp_path, 4)
    for i, name in enumerate(NAMES[:6]):
        write_parquet(tmp_path / "data" / name, images[i % 3 :], [(1.0, 0.0)], caption=[name])
    (tmp_path / "data" / NAMES[6]).write_bytes(b"left by macOS")
    assert [file.name for file in shards(tmp_path)] == NAMES[:2]
    said = []
    source = prepared(policy, tmp_path, said=said)
    assert {pair.prompt for pair in source.pairs} == set(NAMES[:2])
    assert said[0] == "data: 2 parquet files of the split train; not read: test, validation"
    assert shards(tmp_path / "data" / NAMES[3]) == [tmp_path / "data" / NAMES[3]], "a file that is named is read"


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["a.parquet", "b.parquet"], ["a.parquet", "b.parquet"]),
        (["train/0.parquet", "test/0.parquet"], ["train/0.parquet"]),
        (["train_unique-0.parquet", "train-0.parquet"], ["train-0.parquet"]),
        (["pickapic_train.parquet", "pickapic_val.parquet"], ["pickapic_train.parquet"]),
        (["validation-0.parquet"], ["validation-0.parquet"]),
    ],
)
def test_splits_are_told_by_the_names(tmp_path, names, read):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.relative_to(tmp_path).as_posix() for file in shards(tmp_path)] == read


def test_splits_of_which_none_is_train_are_refused(tmp_path):
    for name in ("validation-0.parquet", "test-0.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="its shards are of test, validation, none of the split train"):
        shards(tmp_path)
    assert split_of(tmp_path / "contest-0.parquet", tmp_path) == ""


def test_image_columns_as_datasets_saves_them(policy, tmp_path):
    """Structs of bytes and path; the path alone where the bytes were left out."""
    images = pngs(tmp_path, 3)
    for folder, cells in (
        ("bytes", [{"bytes": data, "path": None} for data in images]),
        ("paths", [{"bytes": None, "path": f"made/{i}.png"} for i in range(3)]),
        ("text", [f"made/{i}.png" for i in range(3)]),
    ):
        write_parquet(tmp_path / folder / "a.parquet", cells, [(1.0, 0.0), (0.0, 1.0)])
        shutil.copytree(tmp_path / "made", tmp_path / folder / "made")
        pairs = read_pairs(tmp_path / folder)
        assert [pair.winner.read() for pair in pairs] == [images[0], images[2]]
        assert len(prepared(policy, tmp_path / folder).pairs) == 2


def test_parquet_pictures_go_by_their_content(policy, tmp_path):
    """Another file of the same name holds other pictures; nothing of it is taken for the first one's."""
    images = pngs(tmp_path, 4)
    file = write_parquet(tmp_path / "a.parquet", images[:2], [(1.0, 0.0)])
    first = next(iter(prepared(policy, tmp_path, batch_size=1))).load()
    write_parquet(file, [b"\0" * len(images[0])] * 2, [(1.0, 0.0)])
    with pytest.raises(UserError, match="none of its 1 pairs can be used"):
        prepared(policy, tmp_path, batch_size=1)
    write_parquet(file, images[2:], [(1.0, 0.0)])
    assert not torch.equal(next(iter(prepared(policy, tmp_path, batch_size=1))).load().winner.mean, first.winner.mean)


def huge(path):
    """A PNG whose header says 20,000 x 20,000 pixels: what PIL takes for a decompression bomb."""
    picture(path, 0)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20000, 20000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_one_odd_picture_is_left_out_and_counted(policy, tmp_path):
    write_pairs(tmp_path, 5)
    Image.new("RGB", (400, 2)).save(tmp_path / "images/9.png")
    huge(tmp_path / "images/0.png")
    (tmp_path / "images/2.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "images/4.png").write_bytes(b"")
    said = []
    source = prepared(policy, tmp_path, said=said)
    assert said[0] == "data: 1 pairs, left out: 3 damaged, 1 too long" and "images/0.png" in said[1]
    assert next(iter(source)).prompts == ("number 3",) * 4


def test_photos_are_upright_as_align_score_has_them(policy, tmp_path):
    write_pairs(tmp_path, 2)
    upright = Image.open(tmp_path / "images/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "images/2.png", exif=exif)
    Image.open(tmp_path / "images/1.png").save(tmp_path / "images/3.png")
    source = prepared(policy, tmp_path)
    rows = [source.cache.images.read(key)["winner_mean"] for key in source._keys]
    assert torch.equal(*rows)


def test_lines_that_are_valid_json_are_read(tmp_path):
    write_pairs(tmp_path, 1)
    record = json.loads((tmp_path / "pairs.jsonl").read_text()) | {"prompt": "one\u2028two\u0085three"}
    (tmp_path / "pairs.jsonl").write_text("\ufeff" + json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert [pair.prompt for pair in read_pairs(tmp_path)] == ["one\u2028two\u0085three"]


def test_a_cache_that_cannot_be_written_is_named(policy, tmp_path):
    write_pairs(tmp_path / "pairs", 2)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/images-\w+: cannot be written .*Set data.cache"):
        prepared(policy, tmp_path / "pairs", cache=str(tmp_path / "file"))

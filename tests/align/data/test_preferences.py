"""Preference pairs: layouts on disk, the cache, what is left out, views, and the order of batches."""

import json
from collections import Counter

import pytest
import torch
from pair_toys import picture, policy_on, prepared, write_pairs
from PIL import Image

from align.config import load_recipe
from align.data._pairs import detect, read_pairs
from align.data._store import TensorStore
from align.data._views import ViewConfig, buckets, nearest, offsets, pixels, view
from align.data.preferences import Preferences, PreferencesConfig
from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.plan import plan
from align.policy.lora import AdapterConfig
from align.policy.roles import Policy
from align.policy.trainable import Adapter


@pytest.fixture(scope="module")
def policy(tiny_sd_factory):
    return policy_on(tiny_sd_factory())


def encoded(png):
    return png.read_bytes()


# layouts


def test_the_local_folder(tmp_path):
    first, *_ = pairs = read_pairs(write_pairs(tmp_path, 3))
    assert [pair.prompt for pair in pairs] == ["number 0", "number 1", "number 2"]
    assert (first.winner.path, first.loser.path, first.tie) == (
        tmp_path / "images/0.png",
        tmp_path / "images/1.png",
        False,
    )
    assert read_pairs(write_pairs(tmp_path, 1, tie=True))[0].tie


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "winner": "x.png"}', "line 2 needs text under loser"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    write_pairs(tmp_path, 1)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=said):
        read_pairs(tmp_path)


def test_all_bad_lines_are_named_at_once(tmp_path):
    write_pairs(tmp_path, 1)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"promt": "a", "winner": "x.png", "loser": "y.png"}\n[]\n')
        file.write('{"prompt": "a", "winner": "x.png", "loser": "y.png", "tie": 1}\n{"prompt": "a" x}\n')
        file.write("[]\n" * 3)
    said = (
        r"line 2 needs text under prompt \(it has promt\); line 3 needs .* winner, loser; line 4 says tie: 1, .*; "
        r"line 5 is not JSON \(Expecting.*\); line 6 .*; 2 more lines\. Write one"
    )
    with pytest.raises(UserError, match=said):
        read_pairs(tmp_path)


def test_a_slip_in_the_folders_name_makes_no_pairs(tmp_path):
    (tmp_path / "my_pairs").mkdir()
    (tmp_path / "my_pairs" / "pairs.jsonl").write_text('{"prompt": "a", "winner": "x.png", "loser": "y.png"}\n')
    make = {"prompts": ["a"], "rewards": {"brightness": {}}}

    def looked(name: str):
        config = PreferencesConfig.model_validate({"pairs": str(tmp_path / name), "make": make})
        return Preferences(config, batch_size=2, seed=0).look()

    assert len(looked("my_pairs")) == 1 and looked("others") is None
    with pytest.raises(UserError, match=r"my_pear: there is no such folder, and my_pairs beside it has pairs.jsonl"):
        looked("my_pear")
    (tmp_path / "my_pairs").rename(tmp_path / "pairs1")
    assert looked("pairs2") is None, "one of several"
    with pytest.raises(UserError, match=r"pair1: there is no such folder, and pairs1 beside it"):
        looked("pair1")
    (tmp_path / "my_pear").mkdir()
    assert looked("my_pear") is None, "a folder that is there is meant"


def test_a_plan_says_what_pairs_there_are_or_what_it_takes_to_make_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = dict(line.split(maxsplit=1) for line in plan(load_recipe("diffusion_dpo/shapes")).splitlines())
    assert lines["data"].startswith(
        "first draws 2000 x 4 images, judged by gold, into runs/pairs/shapes: 48000 rows of "
    )
    assert list(lines)[1] == "data", "what comes first stands first"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pairs.jsonl").write_text('{"prompt": "a", "winner": "x.png", "loser": "y.png"}\n')
    said = plan(load_recipe("diffusion_dpo/shapes", ["data.pairs=mine", "data.make=null"]))
    assert "1 pair in mine, 2 pictures missing, such as mine/x.png, fewer than the 32 of an update: each comes " in said


def test_pick_a_pics_layout(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
    images = [encoded(tmp_path / f"{i}.png") for i in range(6)]
    labels = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (None, None), (1.0, 0.0)]
    table = {
        "caption": [f"prompt {i}" for i in range(5)],
        "jpg_0": images[:5],
        "jpg_1": images[1:],
        "label_0": [a for a, _ in labels],
        "label_1": [b for _, b in labels],
        "has_label": [a is not None for a, _ in labels],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train-0.parquet", row_group_size=2)
    pairs = read_pairs(tmp_path)
    assert [pair.prompt for pair in pairs] == ["prompt 0", "prompt 1", "prompt 2", "prompt 4"]
    assert [pair.tie for pair in pairs] == [False, False, True, False]
    assert pairs[0].winner.read() == images[0] and pairs[0].loser.read() == images[1]
    assert pairs[1].winner.read() == images[2], "label_1 is preferred"
    assert pairs[3].winner.read() == images[4], "a row of the third row group, behind one without a label"
    assert len({picture.stamp() for pair in pairs for picture in (pair.winner, pair.loser)}) == 8


def test_hpdv2s_layout(tmp_path):
    for i in range(4):
        picture(tmp_path / "train" / f"{i}.png", i)
    records = [
        {"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]},
        {"prompt": "b", "file_path": ["2.png", "3.png"], "human_preference": [1, 0]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    pairs = read_pairs(tmp_path)
    assert [(p.winner.path.name, p.loser.path.name) for p in pairs] == [("1.png", "0.png"), ("2.png", "3.png")]
    assert pairs[0].winner.read() == encoded(tmp_path / "train" / "1.png")


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no pairs\.jsonl, pairs\.csv or pairs\.tsv, no \.parquet file"):
        detect(tmp_path)
    ((key, said),) = PreferencesConfig(pairs=str(tmp_path / "absent")).conflicts({})
    assert key == ".pairs" and "no such file or folder" in said


# views


def test_buckets_hold_about_the_area_within_the_aspect():
    config = ViewConfig(buckets=True, bucket_step=64, max_aspect=2.0)
    sizes = buckets(config, (1024, 1024))
    assert (1024, 1024) in sizes and {(w, h) for h, w in sizes} == set(sizes)
    assert all(0.85 * 2**20 < h * w <= 2**20 and h % 64 == w % 64 == 0 and max(h / w, w / h) <= 2 for h, w in sizes)
    assert nearest((600, 900), sizes)[0] < nearest((600, 900), sizes)[1]
    assert nearest((512, 512), sizes) == (1024, 1024)
    assert buckets(ViewConfig(), (512, 512)) == [(512, 512)]
    with pytest.raises(UserError, match="Lower it"):
        buckets(ViewConfig(buckets=True, bucket_step=64), (32, 32))


def test_a_view_covers_its_bucket_and_says_where_it_is():
    place = view((30, 60), (24, 24), (0.5, 1.0))
    assert place.scaled == (24, 48) and place.corner == (0, 24)
    assert place.ids.tolist() == [30, 60, 0, 24, 24, 24]
    image = Image.new("RGB", (60, 30), "black")
    image.paste("white", (45, 0, 60, 30))
    shown = pixels(image, place)
    assert shown.shape == (3, 24, 24)
    assert shown[:, :, 16:].min() > 0.9 and shown[:, :, :8].max() < 0.1, (
        "the right edge of the image, halves of it white"
    )
    whole = view((24, 24), (24, 24))
    exact = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8)
    assert torch.equal(pixels(Image.fromarray(exact.numpy()), whole), exact.permute(2, 0, 1) / 255)


def test_random_crops_are_drawn_once_a_pair():
    config = ViewConfig(crop="random")
    assert offsets(config, 0, "a") == offsets(config, 0, "a") != offsets(config, 0, "b")
    assert offsets(ViewConfig(), 0, "a") == (0.5, 0.5)


# the cache


def counting(policy, monkeypatch):
    """How many images and prompts the model encodes from now on."""
    counts = Counter()
    encode, embed = policy.model.codec.encode, policy.model.text.encode
    monkeypatch.setattr(policy.model.codec, "encode", lambda x: (counts.update(images=len(x)), encode(x))[1])
    monkeypatch.setattr(policy.model.text, "encode", lambda p: (counts.update(prompts=len(p)), embed(p))[1])
    return counts


def test_what_is_cached_is_what_the_model_says(policy, tmp_path):
    batch = next(iter(prepared(policy, write_pairs(tmp_path), views={"flip": True})))
    pairs = batch.load()
    assert {view % 2 for view in batch.views} == {0, 1}, "mirrored and not"
    for i, (row, number) in enumerate(zip(batch.rows, batch.views, strict=True)):
        image = Image.open(tmp_path / f"images/{2 * row}.png")
        shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1) / 255
        direct = policy.model.codec.encode((shown.flip(-1) if number % 2 else shown)[None])
        torch.testing.assert_close(pairs.winner.mean[i], direct.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pairs.winner.logvar[i], direct.logvar[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(pairs.cond.tensors["text"], policy.model.text.encode(batch.prompts).tensors["text"])


def test_a_second_run_encodes_nothing_and_a_changed_image_alone_is_encoded_again(policy, tmp_path, monkeypatch):
    write_pairs(tmp_path)
    counts = counting(policy, monkeypatch)
    prepared(policy, tmp_path)
    assert counts == {"images": 12, "prompts": 7}
    prepared(policy, tmp_path)
    assert counts == {"images": 12, "prompts": 7}
    picture(tmp_path / "images/3.png", 40)
    prepared(policy, tmp_path)
    assert counts == {"images": 14, "prompts": 7}
    prepared(policy, tmp_path, views={"image_size": [24, 24]})
    assert counts == {"images": 26, "prompts": 7}
    prepared(policy, tmp_path, seed=1)
    assert counts == {"images": 26, "prompts": 7}, "another seed sees the same centres"
    for seed in (0, 1):
        prepared(policy, tmp_path, seed=seed, views={"crop": "random"})
    assert counts == {"images": 50, "prompts": 7}, "random crops are a seed's own"


def test_what_the_base_makes_is_kept_whatever_layers_an_adapter_is_on(tiny_sd_factory, tmp_path):
    write_pairs(tmp_path)
    folders = []
    for targets in (["to_q"], ["to_k", "to_v"]):
        model = StableDiffusion(SDConfig(checkpoint="tiny"), pipeline=tiny_sd_factory())
        policy = Policy(model, Adapter(AdapterConfig(rank=2), model.network, targets, seed=0))
        folders.append(prepared(policy, tmp_path).cache.store("inverted", {}).folder)
    with torch.no_grad():
        next(model.network.parameters()).add_(1.0)
    folders.append(prepared(policy, tmp_path).cache.store("inverted", {}).folder)
    assert folders[0] == folders[1] != folders[2]


def test_a_damaged_shard_is_made_again(policy, tmp_path, monkeypatch):
    source = prepared(policy, write_pairs(tmp_path))
    before = next(iter(source)).load().winner.mean
    (shard,) = source.cache.images.folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    counts, said = counting(policy, monkeypatch), []
    again = prepared(policy, tmp_path, said=said)
    assert counts == {"images": 12} and any("is damaged" in line for line in said)
    assert torch.equal(next(iter(again)).load().winner.mean, before)


def test_a_store_that_was_left_in_a_write_loses_none_of_the_rest(tmp_path):
    store = TensorStore(tmp_path)
    store.write({"a": {"x": torch.ones(2)}, "b": {"x": torch.zeros(2), "y": torch.ones(1)}})
    (tmp_path / ".0123-99").write_bytes(b"half a shard")
    other = TensorStore(tmp_path)
    other.scan(verify=True)
    assert len(other) == 2 and "a" in other and other.shape("b", "y") == [1]
    assert torch.equal(other.read("a")["x"], torch.ones(2)) and other.read("b").keys() == {"x", "y"}


def broken(folder):
    """5 pairs: one image missing, one cut short, one of another size, one tie, one sound."""
    write_pairs(folder, 5)
    (folder / "images/0.png").unlink()
    data = (folder / "images/3.png").read_bytes()
    (folder / "images/3.png").write_bytes(data[: len(data) // 2])
    picture(folder / "images/5.png", 5, (48, 40))
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"tie": True})
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def test_what_cannot_be_used_is_counted_before_training(policy, tmp_path):
    said = []
    source = prepared(policy, broken(tmp_path), said=said, two_sizes="skip")
    assert said[0] == "data: 1 pairs, left out: 1 damaged, 1 missing, 1 two sizes, 1 ties"
    assert "images/0.png: missing" in said[1] and "images/3.png" in said[1]
    batch = next(iter(source))
    assert batch.prompts == ("number 4",) * 4 and batch.load().winner.mean.shape == (4, 4, 8, 8)
    fitted = prepared(policy, tmp_path, two_sizes="fit", ties="keep")
    assert {next(iter(fitted)).prompts[i] for i in range(4)} <= {"number 2", "number 3", "number 4"}
    with pytest.raises(UserError, match=r"1 of 5 pairs cannot be used \((damaged|missing)\).*images/0\.png"):
        prepared(policy, tmp_path, damaged="refuse")
    with pytest.raises(UserError, match=r"1 of 5 pairs cannot be used \(two sizes\)"):
        prepared(policy, tmp_path, two_sizes="refuse")


def test_a_model_that_reads_sizes_is_told_the_true_ones(policy, tmp_path, monkeypatch):
    """Original size, the crop's corner and the bucket of each image of a pair, where a prompt was dropped too."""

    def with_sizes(cond, sizes):
        return type(cond)({**cond.tensors, "sizes": sizes})

    monkeypatch.setattr(policy.model, "with_sizes", with_sizes, raising=False)
    write_pairs(tmp_path, 1)
    picture(tmp_path / "images/1.png", 1, (64, 96))
    pairs = next(iter(prepared(policy, tmp_path, batch_size=2))).load()
    for dropped in ([False, False], [True, False]):
        winner, loser = (cond.tensors["sizes"].tolist() for cond in pairs.conds(dropped))
        assert winner == [[32, 32, 0, 0, 32, 32]] * 2
        assert loser == [[64, 96, 0, 8, 32, 32]] * 2


# batches


def test_every_epoch_sees_every_pair_once(policy, tmp_path):
    stream = iter(prepared(policy, write_pairs(tmp_path), batch_size=4))
    rows = [row for _ in range(3) for row in next(stream).rows]
    assert Counter(rows[:6]) == Counter(rows[6:]) == Counter(range(6))
    assert rows[:6] != rows[6:]


def test_a_source_goes_on_where_it_was(policy, tmp_path):
    config = {"views": {"buckets": True, "bucket_step": 8, "image_size": [32, 32]}}
    write_pairs(tmp_path, 6)
    for i in range(4):
        picture(tmp_path / f"images/{i}.png", i, (32, 64))
    whole = iter(source := prepared(policy, tmp_path, batch_size=2, **config))
    batches = [next(whole) for _ in range(12)]
    sizes = [batch.load().winner.mean.shape[-2:] for batch in batches]
    assert len(set(sizes)) == 2, "a batch is of one bucket, and both are drawn"
    half = iter(started := prepared(policy, tmp_path, batch_size=2, **config))
    for _ in range(5):
        next(half)
    taken_up = prepared(policy, tmp_path, batch_size=2, **config)
    taken_up.load_state_dict(json.loads(json.dumps(started.state_dict())))
    rest = iter(taken_up)
    assert [(b.rows, b.indices, b.step) for b in batches[5:]] == [
        (b.rows, b.indices, b.step) for b in (next(rest) for _ in range(7))
    ]
    assert source.state_dict()["step"] == 12


def test_pairs_of_one_picture_are_said(tmp_path):
    from align.data._judged import Pair
    from align.data._pictures import Picture

    source = Preferences(PreferencesConfig(pairs=str(tmp_path)), batch_size=1, seed=0)
    a, b = (Picture(tmp_path / name) for name in "ab")
    assert not [*source.notes([Pair("x", a, b), Pair("x", b, a)])]
    (note,) = source.notes([Pair("x", a, b), Pair("x", b, Picture(tmp_path / "b"))])
    assert note == "  1 pair of one picture twice, the first 2 of 2: nothing is to be learnt from it"

"""Whatever a file holds, it is read or refused in one line: no traceback, nothing written, and it ends.

More examples: ALIGN_EXAMPLES=2000 python -m pytest tests/align/test_hostile.py
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from hostile import broken, lines, picture, scalar, tree, tried, word
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from align import recipes
from align.config import load_recipe
from align.data._labels import read_labels
from align.data._pairs import read_pairs
from align.data.prompts import load_prompts
from align.errors import UserError
from align.evaluation.arms import Arm
from align.evaluation.files import Chunk, Folder, Part
from align.policy import adapter_file
from align.source import Source
from align.training import checkpoint, resume
from align.training.checkpoint import Checkpoints, Damaged
from rewards import RewardError
from rewards._errors import RegistryError
from rewards._images import read_pil

TOLD = (UserError, RewardError, RegistryError)
RECIPES = {name: path.read_bytes() for name, path in recipes.names().items()}


def attempt(read, *arguments, told=TOLD):
    """Reads, or is told in one line or one a problem what is wrong."""
    try:
        return read(*arguments)
    except told as error:
        text = str(error)
        assert text.strip() and "Traceback" not in text and len(text) < 20_000, text[:500]
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@tried
@given(data=st.data())
def test_recipes(folder, data):
    whole = RECIPES[data.draw(st.sampled_from(sorted(RECIPES)))]
    text = data.draw(broken(whole) | tree.map(lambda t: yaml.safe_dump(t).encode()) | st.binary(max_size=60))
    (folder / "recipe.yaml").write_bytes(text)
    before = sorted(folder.iterdir())
    attempt(load_recipe, folder / "recipe.yaml")
    assert sorted(folder.iterdir()) == before


@tried
@given(key=st.lists(word, min_size=1, max_size=3), value=scalar | tree.map(json.dumps) | st.text(max_size=20))
def test_overrides(key, value):
    attempt(load_recipe, "draft/shapes", [f"{'.'.join(key)}={value}"])


@tried
@given(
    key=st.sampled_from(
        ["train", "sampling", "optim.lr", "model", "objective", "data", "rewards", "hooks.guard", "train.batch_size"]
    ),
    value=tree,
)
def test_values_of_keys_that_are_there(key, value):
    attempt(load_recipe, "draft/shapes", {key: value})


BOMBS = {
    "a number of so many digits": "train: {seed: " + "9" * 5000 + "}",
    "nested too deep": "model: " + "[" * 5000 + "]" * 5000,
    "a key is a list": "? [a, b]\n: 1\nmodel: x",
    "stands inside what it names": "model: &a [*a]",
    "more than 100000 values": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
    "special characters are not allowed": "model: \x07",
}


@pytest.mark.parametrize("said", BOMBS)
def test_yaml_that_explodes(tmp_path, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(BOMBS[said])
    with pytest.raises(UserError, match=said):
        Source.read(file)


@tried
@given(data=st.data())
def test_prompt_files(folder, data):
    kind = data.draw(st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".tsv"]))
    rows = [{"prompt": "a red star"}, {"prompt": 'two "cats", x', "category": "y"}]
    table = b'prompt,category\na,b\n"c, d",e\n' if kind == ".csv" else b"prompt\tcategory\na\tb\n"
    whole = {".txt": b"a\nb\r\nc", ".jsonl": lines(*rows), ".json": json.dumps(rows).encode()}.get(kind, table)
    file = folder / f"prompts{kind}"
    file.write_bytes(data.draw(broken(whole) | tree.map(lambda t: lines(t)) | st.binary(max_size=40)))
    attempt(lambda: load_prompts(str(file), key="data.prompts"))


@tried
@given(data=st.data())
def test_pairs_and_labels(folder, data):
    row = {"prompt": "a", "winner": "a.png", "loser": "b.png", "tie": False}
    label = {"prompt": "a", "image": "a.png", "label": True}
    for name, whole, read in (("pairs.jsonl", row, read_pairs), ("labels.jsonl", label, read_labels)):
        place = folder / name.removesuffix(".jsonl")
        place.mkdir(exist_ok=True)
        changed = st.dictionaries(st.sampled_from(sorted(whole)), tree, max_size=2).map(
            lambda d, w=whole: lines(w, w | d)
        )
        (place / name).write_bytes(data.draw(broken(lines(whole, whole)) | changed | tree.map(lambda t: lines(t))))
        attempt(read, place)


PICTURES = [picture("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
PICTURES += [picture("JPEG", mode) for mode in ("L", "RGB", "CMYK")] + [picture("WEBP", "RGBA"), picture("TIFF", "F")]
PICTURES += [
    picture("GIF", "P", save_all=True, append_images=[Image.new("P", (9, 7), 1)]),
    picture("PNG", "RGB", (1, 1)),
]
PICTURES += [picture("BMP", "RGB"), picture("TIFF", "I"), picture("PPM", "RGB"), picture("ICO", "RGBA", (16, 16))]


@tried
@given(data=st.data())
def test_pictures(folder, data):
    file = folder / "picture.png"
    file.write_bytes(data.draw(broken(data.draw(st.sampled_from(PICTURES))) | st.binary(max_size=40)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = attempt(read_pil, file)
    assert read is None or read.mode == "RGB"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(RewardError, match=r"bomb\.png: .*60000"):
        read_pil(tmp_path / "bomb.png")


@pytest.mark.slow
def test_a_hundred_megapixels_are_a_picture(tmp_path):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    read = read_pil(tmp_path / "large.png")
    assert read.size == (10_000, 10_000) and read.getpixel((9_999, 0)) == (255, 255, 255)


def adapter(prefix, down, up, rank=2, **more):
    tensors = {f"{prefix}{down}": torch.ones(rank, 4), f"{prefix}{up}": torch.ones(4, rank)}
    return save({**tensors, **more}, {"format": "pt"})


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ADAPTERS = [
    adapter(f"unet.{ATTENTION}", ".lora_A.weight", ".lora_B.weight"),
    adapter(f"lora_unet_{ATTENTION.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"),
    adapter(f"base_model.model.{ATTENTION}", ".lora_A.weight", ".lora_B.weight"),
    adapter(f"unet.{ATTENTION}", ".lora_A.weight", ".lora_B.weight", **{"x": torch.full((1,), float("nan"))}),
]


@tried
@given(data=st.data())
def test_adapters(folder, data):
    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    (place / adapter_file.FILE_NAME).write_bytes(data.draw(broken(data.draw(st.sampled_from(ADAPTERS)))))
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q"]}
    said = data.draw(st.none() | tree.map(lambda t: json.dumps(t).encode()) | broken(json.dumps(settings).encode()))
    (place / "adapter_config.json").unlink(missing_ok=True)
    if said is not None:
        (place / "adapter_config.json").write_bytes(said)
    attempt(adapter_file.read, place / adapter_file.FILE_NAME)


STATES = {"trainable": {"a": torch.ones(3), "n": 1}, "batches": {"step": 2, "pair": (1, None)}}


@tried
@given(data=st.data(), honest=st.booleans())
def test_checkpoints(tmp_path_factory, data, honest):
    """Damaged ones are passed over; those whose manifest was forged too are refused where they are read."""
    place = tmp_path_factory.mktemp("checkpoints")
    said = []
    checkpoints = Checkpoints(place, say=said.append)
    meta = {"recipe": {"train": {"num_updates": 4}}, "threads": 1}
    good, bad = (checkpoints.save(step, STATES, meta) for step in (1, 2))
    file = bad / data.draw(st.sampled_from(sorted(f.name for f in bad.iterdir())))
    before = file.read_bytes()
    after = data.draw(broken(before) | (tree.map(lambda t: json.dumps(t).encode())))
    file.write_bytes(after)
    if not honest and file.name != checkpoint.MANIFEST:
        sums = json.loads((bad / checkpoint.MANIFEST).read_text())
        sums[file.name] = checkpoint._sha256(file)
        (bad / checkpoint.MANIFEST).write_text(json.dumps(sums))
    found = checkpoints.newest()
    if honest and file.name != checkpoint.MANIFEST:  # a meta.json of another step makes the folder no checkpoint
        assert (found == bad) == (before == after) and (found == bad or said or file.name == "meta.json")
    assert found in (good, bad)
    attempt(checkpoint.load, found, told=(Damaged,))
    attempt(resume.find, place.parent / place.name, str(found), {"train": {"num_updates": 4}}, said.append)


@tried
@given(data=st.data())
def test_evaluation_folders(folder, data):
    """A part that is damaged is made anew: it is as if it were not there."""
    evaluation = Folder(folder / "evaluation")
    arm, chunk = Arm("base"), Chunk(0, [])
    evaluation.save_part(arm, chunk, Part("x", torch.zeros(1, 1, 3, 2, 2), {"clip": torch.ones(1, 1)}, {"clip": "y"}))
    evaluation.keep(arm, "note", "key", {"a": 1})
    part = evaluation._part(arm, chunk)
    part.write_bytes(data.draw(broken(part.read_bytes())))
    note = part.with_name("note.json")
    note.write_bytes(data.draw(broken(note.read_bytes()) | tree.map(lambda t: json.dumps(t).encode())))
    evaluation.part(arm, chunk, "x", 1)
    evaluation.note(arm, "note", "key")


def test_a_name_in_a_dataset_leads_nowhere_else(tmp_path):
    """`datasets` may save {"bytes": None, "path": ...}: a path out of the dataset's folder is not followed."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    from align.data._pictures import Picture

    (tmp_path / "secret.png").write_bytes(b"mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inside.png").write_bytes(b"theirs")
    names = ["../secret.png", str(tmp_path / "secret.png"), "inside.png"]
    write_table(pa.table({"image": [{"bytes": None, "path": name} for name in names]}), tmp_path / "data" / "x.parquet")
    for row in (0, 1):
        with pytest.raises(OSError, match="outside the folder"):
            Picture(Path(tmp_path / "data" / "x.parquet"), row, "image").read()
    assert Picture(Path(tmp_path / "data" / "x.parquet"), 2, "image").read() == b"theirs"

"""Pictures with captions as batches: each row has its own picture, and a source goes on where it stopped."""

import json

import pytest
import torch
from PIL import Image

from align.data.captioned import Captioned, CaptionedConfig
from align.errors import UserError


@pytest.fixture
def folder(tmp_path):
    lines = []
    for i in range(5):
        Image.new("RGB", (8, 6), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "caption": f"number {i}"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def batches(folder, count, **settings):
    source = Captioned(CaptionedConfig(folder=str(folder), **settings), batch_size=4, seed=1)
    stream = iter(source)
    return source, [next(stream) for _ in range(count)]


def test_each_row_has_the_picture_of_its_caption(folder):
    _, (first, second) = batches(folder, 2)
    shown = [round(float(picture[0, 0, 0] * 255) / 40) for batch in (first, second) for picture in batch.images()]
    assert [f"number {i}" for i in shown] == [*first.prompts, *second.prompts]
    assert sorted(shown[:5]) == [0, 1, 2, 3, 4], "an epoch has each once"
    assert first.images().shape == (4, 3, 6, 8) and first.images().dtype == torch.float32
    assert torch.equal(first[1:3].images(), first.images()[1:3]) and first[1:3].indices == (1, 2)


def test_it_goes_on_where_it_stopped(folder):
    source, _ = batches(folder, 1)
    again, _ = batches(folder, 0)
    again.load_state_dict(source.state_dict())
    assert next(iter(again)) == next(iter(source))


def test_pictures_are_brought_to_one_size(folder):
    _, (batch,) = batches(folder, 1, image_size=(4, 4))
    assert batch.images().shape == (4, 3, 4, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [("[]", "line 2: is no JSON object with file and caption"), ('{"file": "9.png", "caption": "x"}', "there is no")],
)
def test_a_wrong_line_is_named(folder, line, message):
    (folder / "captions.jsonl").write_text('{"file": "0.png", "caption": "a"}\n' + line)
    with pytest.raises(UserError, match=message):
        batches(folder, 0)
    ((key, text),) = CaptionedConfig(folder=str(folder)).conflicts({})
    assert key == ".folder" and "line 2" in text

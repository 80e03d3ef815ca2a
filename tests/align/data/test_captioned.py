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


class Told:
    """What a source is prepared with."""

    def __init__(self):
        self.lines, self.model, self.say = [], self, lambda line: self.lines.append(line)

    def progress(self, what, items):
        return items

    def latent_shape(self, size):
        if size[0] % 2:
            raise UserError("no multiple of 2")


def ready(folder, **settings):
    source = Captioned(CaptionedConfig(folder=str(folder), **settings), batch_size=4, seed=1)
    source.prepare(told := Told())
    return source, told.lines


def test_pictures_that_cannot_be_read_are_found_before_training(folder):
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "3.png").write_bytes(b"<html>")
    source, lines = ready(folder)
    assert lines[0].startswith("data: 3 pictures with captions, left out: 2 damaged") and "1.png" in lines[0]
    assert source.all_prompts() == ["number 0", "number 2", "number 4"]
    assert next(iter(source)).images().shape == (4, 3, 6, 8)
    with pytest.raises(UserError, match=r"2 of 5 pictures cannot be read.*1\.png.*data.damaged=skip"):
        ready(folder, damaged="refuse")


def test_pictures_of_several_sizes_are_refused_with_their_sizes(folder):
    Image.new("RGB", (8, 8)).save(folder / "4.png")
    with pytest.raises(UserError, match=r"have 2 sizes \(4 of 6 x 8, 1 of 8 x 8\).*Set data.image_size"):
        ready(folder)
    assert next(iter(ready(folder, image_size=(4, 4))[0])).images().shape == (4, 3, 4, 4)
    with pytest.raises(UserError, match="no multiple"):
        ready(folder, image_size=(5, 5))


def test_captions_are_read_as_texts_are(folder):
    """A byte order mark, line ends of Windows, and separators of Unicode inside a caption."""
    line = json.dumps({"file": "0.png", "caption": "one\u2028two\u0085three"}, ensure_ascii=False)
    (folder / "captions.jsonl").write_bytes(("\ufeff" + line + "\r\n").encode())
    assert ready(folder)[0].all_prompts() == ["one\u2028two\u0085three"]


def test_a_photo_is_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8), "red").save(folder / "0.png", exif=exif)
    assert next(iter(ready(folder)[0])).images().shape == (4, 3, 6, 8)


def test_its_contents_are_those_of_captions_and_pictures(folder):
    before = ready(folder)[0].contents()
    Image.new("RGB", (8, 6), "blue").save(folder / "2.png")
    after = ready(folder)[0].contents()
    assert [key for key in before if before[key] != after[key]] == ["data.folder, pictures"]

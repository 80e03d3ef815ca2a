"""`align shapes`: what it draws it judges right; what it cannot read it says in one line."""

import json

import pytest
from typer.testing import CliRunner

from align.errors import UserError
from align.shapes.cli import app


def call(*words: str):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_rendered_pictures_are_judged_right(tmp_path):
    assert call("render", tmp_path, "--count", "12", "--seed", "3").exit_code == 0
    assert len(list(tmp_path.glob("*.png"))) == 12
    out = call("judge", tmp_path).stdout.splitlines()
    assert out[-1].split() == ["all", "12", "1.000", "1.000"]


def test_a_wrong_picture_is_named_with_what_failed(tmp_path):
    call("render", tmp_path, "--count", "6")
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    rows[0]["caption"] = "four stars"
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = call("judge", tmp_path).stdout.splitlines()[0]
    assert first.startswith("0000.png  four stars: number")


def test_pictures_are_read_upright_and_over_white_as_everywhere(tmp_path):
    from PIL import Image

    from align.shapes.picture import load_png

    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 8))  # the upper rows are clear, and lie at the right when upright
    picture.save(tmp_path / "a.png", exif=turned)
    pixels = load_png(tmp_path / "a.png")
    assert pixels[:, :, 28].min() == 1 and pixels[1, 16, 4] == 0


def test_prompts_are_printed_one_a_line():
    assert len(call("prompts", "--split", "report", "--count", "7").stdout.splitlines()) == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "captions.jsonl: cannot be read"),
        (b"\xfa\xfe", "captions.jsonl: byte 0 (line 1) is not UTF-8"),
        (b"{}", "line 1: not an object"),
        (b"", "is empty"),
        (b'{"file": "x.png", "caption": "a circle"}', "there is no file"),
    ],
)
def test_a_folder_that_cannot_be_judged(tmp_path, content, says):
    if content is not None:
        (tmp_path / "captions.jsonl").write_bytes(content)
    error = call("judge", tmp_path).exception
    assert isinstance(error, UserError) and says in str(error)


def test_a_picture_of_another_size_and_a_caption_of_no_grammar(tmp_path):
    from PIL import Image

    call("render", tmp_path, "--count", "1")
    (tmp_path / "captions.jsonl").write_text('{"file": "0000.png", "caption": "a dog"}')
    assert "'a dog' is not understood" in str(call("judge", tmp_path).exception)
    Image.new("RGB", (64, 48)).save(tmp_path / "0000.png")
    assert "64x48 pixels" in str(call("judge", tmp_path).exception)
    assert "prompt set 'test' is unknown" in str(call("prompts", "--split", "test").exception)

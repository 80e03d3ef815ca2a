"""The one reader of pictures: every mode at its meaning, upright, over white; damage, animations and odd shapes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from rewards._images import ImageError, read_image
from rewards.brightness import Brightness, BrightnessConfig
from rewards.colourfulness import Colourfulness, ColourfulnessConfig
from rewards.jpeg import Jpeg, JpegConfig
from rewards.sharpness import Sharpness, SharpnessConfig
from rewards.symmetry import Symmetry, SymmetryConfig

RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)


def saved(image, path, **how):
    image.save(path, **how)
    return path


def test_sixteen_bits_are_read_by_their_own_range(tmp_path):
    deep = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    flat = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    eight = read_image(saved(flat, tmp_path / "8.png"))
    for name in ("16.png", "16.tif", "16.pgm"):
        assert (read_image(saved(deep, tmp_path / name)) - eight).abs().max() <= 1 / 255, name
    clear = saved(deep, tmp_path / "clear.png", transparency=0)
    assert read_image(clear)[:, :, 0].min() == 1 and read_image(clear)[0, 0, 1] < 0.1


def test_floats_in_their_range_are_read_and_others_refused(tmp_path):
    fine = Image.fromarray(RAMP.astype(np.float32))
    assert read_image(saved(fine, tmp_path / "f.tif")).mean() == pytest.approx(0.5, abs=1e-3)
    for name, values in (("wide", RAMP * 255), ("below", RAMP - 1), ("nan", RAMP * np.nan)):
        path = saved(Image.fromarray(values.astype(np.float32)), tmp_path / f"{name}.tif")
        with pytest.raises(ImageError, match=rf"{name}\.tif: .*levels .*Save it with 8 or 16 bits\."):
            read_image(path)
    whole = saved(Image.fromarray((RAMP * 1e6).astype(np.int32)), tmp_path / "i.tif")
    with pytest.raises(ImageError, match="32-bit whole numbers from 0 to 1e"):
        read_image(whole)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "I;16", "I", "F"])
def test_every_mode_gives_three_channels_in_the_unit_range(mode, tmp_path):
    image = read_image(saved(Image.new(mode, (5, 3)), tmp_path / "x.tif"))
    assert image.shape == (3, 3, 5) and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1


def test_transparency_lies_over_white(tmp_path):
    clear = {"rgba": Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "la": Image.new("LA", (4, 4), (0, 0))}
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    for name, image in clear.items():
        assert read_image(saved(image, tmp_path / f"{name}.png")).min() == 1
    assert read_image(saved(palette, tmp_path / "p.png", transparency=1)).min() == 1
    assert read_image(saved(palette, tmp_path / "bytes.png", transparency=b"\xff\x00")).min() == 1
    assert read_image(saved(palette, tmp_path / "solid.png")).mean() == pytest.approx(1 / 3)
    half = saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), tmp_path / "half.png")
    assert read_image(half).mean() == pytest.approx(127 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_every_exif_orientation_is_turned_upright(orientation, kind, tmp_path):
    from PIL import ImageOps

    picture = Image.fromarray(np.kron(np.array([[0, 255], [128, 64], [200, 30]]), np.ones((16, 16))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(picture.convert("RGB"), tmp_path / f"x.{kind}", exif=exif)
    with Image.open(path) as file:
        wanted = np.asarray(ImageOps.exif_transpose(file).convert("RGB")) / 255
    assert torch.allclose(read_image(path).permute(1, 2, 0), torch.from_numpy(wanted).float(), atol=1e-6)


def test_whole_pixels_with_a_broken_exif_are_read(tmp_path):
    path, info = tmp_path / "x.png", PngImagePlugin.PngInfo()
    info.add(b"eXIf", b"not a header")
    Image.new("RGB", (4, 4), "red").save(path, pnginfo=info)
    assert read_image(path)[0].min() == 1


def test_what_is_no_picture_is_one_line(tmp_path):
    whole = io.BytesIO()
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(whole, "PNG")
    damaged = {"empty": b"", "half": whole.getvalue()[:60], "page": b"<html>404</html>", "head": b"\x89PNG\r\n\x1a\n"}
    for name, data in damaged.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(ImageError, match=rf"{name}\.png: is no image that can be read .*\n?") as caught:
            read_image(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="is no image that can be read"):
            read_image(missing)
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):  # whatever is broken, it is that error and no other
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(data, kind)
        for _ in range(40):
            broken = bytearray(data.getvalue())
            for place in rng.integers(0, len(broken), 3):
                broken[place] = rng.integers(256)
            try:
                assert read_image(bytes(broken), "x").ndim == 3
            except ImageError as error:
                assert str(error).startswith("x: ") and "\n" not in str(error)


def test_an_animation_is_refused_and_a_single_frame_is_not(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for name in ("x.webp", "x.png", "x.gif", "x.tif"):
        moving = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="holds 3 frames, and one picture is meant"):
            read_image(moving)
        assert read_image(saved(frames[0], tmp_path / name)).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 1)])
def test_pixel_rewards_take_the_smallest_pictures(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = (
        Sharpness(SharpnessConfig()),
        Brightness(BrightnessConfig()),
        Colourfulness(ColourfulnessConfig()),
        Symmetry(SymmetryConfig()),
        Jpeg(JpegConfig()),
    )
    for reward in rewards:
        assert reward(images, ["", ""]).isfinite().all(), type(reward).__name__


def test_a_picture_too_long_to_enlarge_is_refused_before_it_fills_the_memory():
    from rewards._errors import RewardError
    from rewards._preprocess import Preprocess

    assert Preprocess(size=8, crop=(8, 8))(torch.rand(1, 3, 2, 128)).shape == (1, 3, 8, 8)
    with pytest.raises(RewardError, match="an image of 5000 x 1 pixels is too long"):
        Preprocess(size=224, crop=(224, 224))(torch.rand(1, 3, 1, 5000))

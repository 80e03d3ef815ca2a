"""The one reader of picture files: levels in [0, 1] as they are meant, whatever the file's mode, or one line why not.

Turned upright as its EXIF says, transparency over white, 16 bits by their own range. What has no stated range (32-bit
whole numbers, floats beyond [0, 1]) is refused and not clipped, and so is an animation: which of its frames is meant?
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from rewards._errors import RewardError

if TYPE_CHECKING:  # what only looks for pictures loads no torch
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What a folder is searched for; a file that is named may end otherwise."""
STATED = ("PNG", "PPM")  # formats whose 32-bit mode is PIL's way of holding 16 bits
FLAT = ("MPO",)  # several pictures in one file, of which the first is the photo


class ImageError(RewardError):
    """A file that is no picture, is damaged, or whose levels have no stated meaning; names the file and what to do."""


def read_image(path: str | Path | bytes, where: str = "") -> "Tensor":
    """(3, H, W) float32 in [0, 1] of a file, or of a file's bytes that errors call `where`; ImageError otherwise."""
    return tensor(read_pil(path, where))


def read_pil(source: str | Path | bytes, where: str = "") -> Image.Image:
    """The same as an upright 8-bit RGB image."""
    path = where or (f"a picture of {len(source)} bytes" if isinstance(source, bytes) else source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large files, and of metadata that is not read
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                return upright_rgb(file)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: is no image that can be read (no known format, or damaged). {WAY_OUT}") from None
    except OSError as error:
        raise ImageError(
            f"{path}: is no image that can be read ({error.strerror or _short(error)}). {WAY_OUT}"
        ) from None
    except Exception as error:  # a damaged file raises what its bytes happen to mean: SyntaxError, struct.error, ...
        raise ImageError(f"{path}: is no image that can be read ({_short(error)}). {WAY_OUT}") from None


def texts(path: str | Path) -> dict[str, str]:
    """The texts that an image file carries, by their keys; none of a file that is to be refused when it is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                return {str(key): value for key, value in file.info.items() if isinstance(value, str)}
    except Exception:  # as above: what the bytes of a damaged file happen to mean
        return {}


def upright_rgb(file: Image.Image) -> Image.Image:
    """An opened picture, turned upright, transparency over white, as 8-bit RGB; of any mode that says what it means."""
    if getattr(file, "n_frames", 1) > 1 and file.format not in FLAT:
        raise ImageError(f"holds {file.n_frames} frames, and one picture is meant. Save that one.")  # type: ignore[attr-defined]
    file.load()
    if file.mode.startswith("I") or file.mode == "F":
        image = _levels(file)
    else:
        if file.mode in ("La", "RGBa"):
            file = file.convert({"La": "LA", "RGBa": "RGBA"}[file.mode])
        image = _over_white(file)
    return _turned(file, image)


def tensor(image: Image.Image) -> "Tensor":
    """An RGB image -> (3, H, W) in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _over_white(file: Image.Image) -> Image.Image:
    if "A" in file.getbands() or "transparency" in file.info:
        rgba = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return file.convert("RGB")


def _levels(file: Image.Image) -> Image.Image:
    """16 or 32 bits a pixel -> 8, by the range that the format states."""
    import numpy as np

    values = np.asarray(file).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("has levels that are no numbers. Save it with 8 or 16 bits.")
    low, high = float(values.min()), float(values.max())
    if file.mode == "F":
        most = 1.0
    elif file.mode.startswith("I;16") or (file.format in STATED and high <= 65535):
        most = 65535.0
    else:
        most = 0.0
    if low < 0 or high > most:
        kind = "floats" if file.mode == "F" else "32-bit whole numbers"
        raise ImageError(
            f"its levels are {kind} from {low:g} to {high:g}, and no range is stated. Save it with 8 or 16 bits."
        )
    grey = np.floor(values * (255 / (most or 1.0)) + 0.5).astype(np.uint8)
    if isinstance(clear := file.info.get("transparency"), int):
        grey = np.where(values == clear, 255, grey).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _turned(file: Image.Image, image: Image.Image) -> Image.Image:
    """`image` turned as the EXIF of `file` says; a broken EXIF says nothing, and the pixels are whole."""
    try:
        orientation = file.getexif().get(0x0112)
    except Exception:  # PIL raises SyntaxError, struct.error and others here
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


TURNS: dict[int, Any] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright, as in PIL.ImageOps.exif_transpose."""
WAY_OUT = "Remove it, or save it again."


def hidden(path: Path) -> bool:
    """Whether a file's name says that it is no data: .DS_Store, and the ._0.png that macOS leaves beside 0.png."""
    return path.name.startswith(".")


def _short(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

"""Pictures of the shapes world as files, and sheets of them with captions and verdicts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from align.errors import UserError
from align.shapes.scene import SIZE


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB picture."""
    return Image.fromarray((image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def save_png(image: Tensor, path: Path) -> None:
    """Write (3, H, W) in [0, 1] as PNG."""
    to_pil(image).save(path)


def load_png(path: Path) -> Tensor:
    """A picture of the shapes world as (3, 32, 32) in [0, 1].

    Raises:
        UserError: not a picture, or of another size.
    """
    try:
        with Image.open(path) as file:
            array = np.array(file.convert("RGB"))
    except OSError:
        raise UserError(f"{path}: is not a picture that can be read. Give PNG files.") from None
    if array.shape != (SIZE, SIZE, 3):
        raise UserError(f"{path}: is {array.shape[1]}x{array.shape[0]} pixels; the judge reads {SIZE}x{SIZE} only.")
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def sheet(
    images: Sequence[Tensor],
    captions: Sequence[str],
    columns: int,
    *,
    right: Sequence[bool] | None = None,
    scale: int = 4,
) -> Image.Image:
    """Pictures in rows, enlarged, each over its caption and framed green (right) or red (wrong) where told."""
    side, gap, words = SIZE * scale, 4, 26
    rows = -(-len(images) // columns)
    out = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + words + gap) + gap), "white")
    draw = ImageDraw.Draw(out)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + (i % columns) * (side + gap), gap + (i // columns) * (side + words + gap)
        out.paste(to_pil(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        if right is not None:
            draw.rectangle(
                (x - 2, y - 2, x + side + 1, y + side + 1), outline="#2a9d3a" if right[i] else "#d03030", width=2
            )
        half = len(caption) if len(caption) * 6 < side else caption.rfind(" ", 0, side // 6)
        draw.text((x, y + side + 1), f"{caption[:half]}\n{caption[half:].strip()}", fill="black", spacing=0)
    return out

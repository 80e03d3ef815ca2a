"""Pictures of the shapes world as files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from align.errors import UserError
from align.shapes.scene import SIZE


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

"""Pictures of the shapes world as files."""

from pathlib import Path

from torch import Tensor

from align.errors import UserError
from align.shapes.scene import SIZE
from rewards._images import ImageError, read_image


def load_png(path: Path) -> Tensor:
    """A picture of the shapes world as (3, 32, 32) in [0, 1].

    Raises:
        UserError: not a picture, or of another size.
    """
    try:
        image = read_image(path)
    except ImageError as error:
        raise UserError(str(error)) from None
    height, width = image.shape[1:]
    if (height, width) != (SIZE, SIZE):
        raise UserError(f"{path}: is {width}x{height} pixels; the judge reads {SIZE}x{SIZE} only.")
    return image

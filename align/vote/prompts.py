"""Which prompt a picture is for: as given, as it says itself, or as the file beside it says."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from align.errors import UserError
from align.evaluation.score_inputs import pair
from rewards._images import read_pil


def with_prompts(images: Sequence[str], prompts: str | None) -> list[tuple[str, str]]:
    """(absolute path, prompt) of each image; one that cannot be read is an error before anybody has voted."""
    for image in images:
        read_pil(image)
    if prompts is not None:
        return [(str(Path(row.image).absolute()), row.prompt) for row in pair(images, prompts)]
    found = []
    for image in images:
        own = _own(image)
        prompt = own if own is not None else pair([image], None)[0].prompt
        found.append((str(Path(image).absolute()), prompt))
    return found


def _own(image: str) -> str | None:
    """The prompt that `align sample` and its like write into a PNG."""
    try:
        with Image.open(image) as file:
            said = file.info.get("prompt")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises depends on the damage
        raise UserError(f"{image}: cannot be read ({error}). Remove it.") from None
    return said.strip() if isinstance(said, str) and said.strip() else None

"""Where the embedded checkpoints lie: `embedded:shapes-sd` -> a local folder, in a checkout and in a wheel."""

from pathlib import Path

from align.errors import UserError
from align.shapes import assembled

PREFIX = "embedded:"
FOLDER = Path(__file__).parent / "checkpoints"


def names() -> list[str]:
    """The checkpoints that are bundled, sorted."""
    return sorted(p.name for p in FOLDER.iterdir() if p.is_dir())


def pipelines() -> list[str]:
    """Those of `names` that are models to draw with."""
    return [name for name in names() if (FOLDER / name / "scheduler").is_dir()]


def resolve(name: str) -> Path:
    """The folder of `embedded:NAME`; of one that ships in parts, where it was put together.

    Raises:
        UserError: not of that form, nothing bundled under that name, or no room to merge it.
    """
    plain = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or plain not in names():
        known = ", ".join(PREFIX + n for n in names()) or "none"
        raise UserError(f"{name}: there is no embedded checkpoint of that name. Known: {known}.")
    folder = FOLDER / plain
    return assembled.assemble(folder) if assembled.in_parts(folder) else folder

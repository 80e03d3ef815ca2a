"""Where the embedded checkpoints lie: `embedded:shapes-sd` -> a local folder, in a checkout and in a wheel."""

from pathlib import Path

from align.errors import UserError

PREFIX = "embedded:"
FOLDER = Path(__file__).parent / "checkpoints"


def names() -> list[str]:
    """The checkpoints that are bundled, sorted."""
    return sorted(p.name for p in FOLDER.iterdir() if p.is_dir())


def resolve(name: str) -> Path:
    """The folder of `embedded:NAME`.

    Raises:
        UserError: not of that form, or nothing bundled under that name.
    """
    plain = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or plain not in names():
        known = ", ".join(PREFIX + n for n in names()) or "none"
        raise UserError(f"{name}: there is no embedded checkpoint of that name. Known: {known}.")
    return FOLDER / plain

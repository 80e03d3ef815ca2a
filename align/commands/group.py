"""How `align` lists its commands, and what its arguments complete to."""

from collections.abc import Iterator
from typing import Any

from typer.core import TyperGroup


class Listing(TyperGroup):
    """Each command with its whole first sentence; typer would cut it at 45 letters."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                text = " ".join((command.help or "").split())
                rows.append((name, text.partition(". ")[0].rstrip(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def recipe_names(incomplete: str) -> Iterator[str]:
    """For the shell's completion: the recipes that begin so."""
    from align.recipes import names

    return (name for name in names() if name.startswith(incomplete))

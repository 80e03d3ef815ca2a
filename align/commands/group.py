"""How `align` lists its commands, and what its arguments complete to."""

import difflib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

PLAINLY = {
    "output": "output", "model": "model.checkpoint", "prompts": "data.prompts", "reward": "rewards",
    "guidance": "sampling.guidance_scale",
    "steps": "train.num_updates", "updates": "train.num_updates", "epochs": "train.num_updates",
}  # fmt: skip
"""What an option of `align train` that there is not would have meant, where no key is called so."""


class Listing(TyperGroup):
    """Each command with its whole first sentence; typer would cut it at 45 letters."""

    def invoke(self, ctx: Any) -> Any:
        """With a word on how settings are written, where one is given as an option that a command has not."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # typer's own, of a module that it does not show
            option, command = getattr(error, "option_name", None), getattr(getattr(error, "ctx", None), "command", None)
            if option and {"overrides", "change"} & {one.name for one in getattr(command, "params", ())}:
                close = difflib.get_close_matches(option, getattr(error, "possibilities", None) or (), cutoff=0.8)
                if not close:
                    vars(error).update(message=f"No such option: {option}. {as_setting(option)}", possibilities=None)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`align help train` is `align train --help`, and `align help` is `align --help`."""
        if args[0] != "help" or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if words := [word for word in args[1:] if not word.startswith("-")]:
            return super().resolve_command(ctx, [*words, "--help"])
        typer.echo(ctx.get_help())
        ctx.exit()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                text = " ".join((command.help or "").split())
                rows.append((name, text.partition(". ")[0].rstrip(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def as_setting(option: str) -> str:
    """How the setting is written that an option may have been meant for."""
    from align.config import elsewhere

    word = option.strip("-").replace("-", "_")
    key = (PLAINLY.get(word) or elsewhere(word)).partition(",")[0]
    meant = f"Write {key}=..., without dashes" if key else "Settings are written by their keys, such as optim.lr=1e-4"
    return f"{meant} (docs/reference/recipe.md)."


def recipe_names(incomplete: str) -> Iterator[str]:
    """For the shell's completion: the recipes that begin so."""
    from align.recipes import names

    return (name for name in names() if name.startswith(incomplete))

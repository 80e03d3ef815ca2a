"""`align shapes`: draw ground truth, judge a folder of pictures, print prompts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from align.errors import UserError
from align.files.texts import Unreadable, json_lines, read_text
from rewards._numerals import counted

app = typer.Typer(no_args_is_help=True, help="The embedded world: draw it, judge it, ask it.")

Split = Annotated[str, typer.Option(help="Prompt set: train, select or report.")]
Count = Annotated[int, typer.Option(min=1, help="How many.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]


def _captions(split: str, count: int, seed: int) -> list[str]:
    from align.shapes.prompts import prompts

    try:
        return prompts(split, count, seed)
    except ValueError as error:
        raise UserError(f"--split: {error}") from None


@app.command()
def prompts(split: Split = "train", count: Count = 24, seed: Seed = 0) -> None:
    """Print captions of a prompt set, one a line, the six skills in turn."""
    for caption in _captions(split, count, seed):
        typer.echo(caption)


@app.command()
def render(
    output: Annotated[Path, typer.Argument(help="Folder to write to; made if missing.")],
    split: Split = "train",
    count: Count = 24,
    seed: Seed = 0,
) -> None:
    """Draw a true picture of each caption: OUTPUT/0000.png ... and OUTPUT/captions.jsonl, which `judge` reads."""
    import numpy as np

    from align.figures.picture import to_pil
    from align.shapes.captions import parse
    from align.shapes.compose import compose
    from align.shapes.scene import render_batch

    captions = _captions(split, count, seed)
    rng = np.random.default_rng(seed)
    images = render_batch([compose(parse(c), rng) for c in captions])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made ({error.strerror}). Give a folder that can be written to.") from None
    rows = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        to_pil(image).save(output / f"{i:04d}.png")
        rows.append(json.dumps({"file": f"{i:04d}.png", "caption": caption}))
    (output / "captions.jsonl").write_text("\n".join(rows) + "\n")
    typer.echo(f"{counted(len(rows), 'picture')} in {output}")


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(help="Folder with 32x32 pictures and captions.jsonl {file, caption}.")],
) -> None:
    """Judge a folder of pictures: a line for each that fails, then strict and graded per skill."""
    import torch

    from align.shapes.captions import SKILLS, parse
    from align.shapes.judge import judge as verdicts_of
    from align.shapes.picture import load_png

    rows = _rows(folder)
    images = torch.stack([load_png(folder / row["file"]) for row in rows])
    captions = [row["caption"] for row in rows]
    try:
        verdicts = verdicts_of(images, captions)
    except ValueError as error:
        raise UserError(f"{folder / 'captions.jsonl'}: {error}") from None
    for row, verdict in zip(rows, verdicts, strict=True):
        if not verdict.strict:
            failed = ", ".join(what for what, ok in verdict.checks if not ok)
            typer.echo(f"{row['file']}  {row['caption']}: {failed}")
    typer.echo(f"{'skill':<12} {'n':>5} {'strict':>7} {'graded':>7}")
    for skill in (*SKILLS, "all"):
        part = [v for v, c in zip(verdicts, captions, strict=True) if skill in ("all", parse(c).skill)]
        if part:
            strict, graded = (sum(getattr(v, k) for v in part) / len(part) for k in ("strict", "graded"))
            typer.echo(f"{skill:<12} {len(part):>5} {strict:>7.3f} {graded:>7.3f}")


def _rows(folder: Path) -> list[dict[str, str]]:
    """The lines of FOLDER/captions.jsonl, each checked to name a picture that exists and a caption."""
    file = folder / "captions.jsonl"
    example = '{"file": "0000.png", "caption": "a red circle"}'
    try:
        lines = list(json_lines(read_text(file), str(file), example))
    except Unreadable as error:
        raise UserError(f"{error} `align shapes render FOLDER` makes an example.") from None
    rows = []
    for number, row in lines:
        try:
            known = {"file": str(row["file"]), "caption": str(row["caption"])}
        except (KeyError, TypeError):
            raise UserError(f'{file}, line {number}: not an object with "file" and "caption".') from None
        if not (folder / known["file"]).is_file():
            raise UserError(f"{file}, line {number}: there is no file {folder / known['file']}.")
        rows.append(known)
    if not rows:
        raise UserError(f"{file}: is empty, so there is nothing to judge.")
    return rows

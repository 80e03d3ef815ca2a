"""Compares methods on the shapes world over several seeds, and writes docs/lab/results.md and the pages beside it.

python scripts/compare.py curves                     # methods by their own recipes, to their end
python scripts/compare.py curves --of preferences    # those that learn from preferences
python scripts/compare.py curves --of gradients      # gradients of rewards at equal network calls
python scripts/compare.py best                       # best of n, for the page of all of them
python scripts/compare.py overoptimise               # then: reno, ranks, guided, students, aims, equal
python scripts/compare.py guidance                   # ways of guidance and solvers at equal calls
python scripts/compare.py levers                     # DRaFT with each lever for as many seconds
python scripts/compare.py write                      # from what there is; of runs elsewhere the pages of sections
                                                     # (aims) and of rows (students, curves) keep what they say
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SEEDS = "11,12,13"  # 0 and 1 are what recipes were tuned with
OUTPUT = ROOT / "outputs" / "compare"
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Output = Annotated[Path, typer.Option(help="Folder of the runs.")]


@app.command()
def curves(
    names: Annotated[list[str] | None, typer.Argument(help="Methods; default: all.")] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "60,61,62",
    prompts: Annotated[int, typer.Option(help="Report prompts of each run.")] = 1024,
    of: Annotated[str, typer.Option(help="The page: curves, preferences or gradients.")] = "curves",
    panel: Annotated[int, typer.Option(help="Select prompts of the curve.")] = 192,
    every: Annotated[int, typer.Option(help="Updates between its points.")] = 20,
    output: Output = OUTPUT,
) -> None:
    """Train methods by their own recipes, watched on the way; what has ended is not trained again."""
    from scripts.comparison.curves import CHAPTERS, train

    if of not in CHAPTERS:
        raise typer.BadParameter(f"--of {of}: known are {', '.join(CHAPTERS)}.")
    chapter = CHAPTERS[of]
    if unknown := set(names or ()) - chapter.methods.keys():
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(chapter.methods)}.")
    for seed in map(int, seeds.split(",")):
        for name in names or chapter.methods:
            train(output, chapter, name, seed, prompts=prompts, panel=panel, every=every)


@app.command()
def best(output: Output = OUTPUT, seeds: str = "60,61,62", prompts: int = 512) -> None:
    """Choose the best of n images by rewards, for the table beside what is trained."""
    from scripts.comparison.best import measure

    for seed in map(int, seeds.split(",")):
        measure(output, seed, prompts=prompts)


@app.command()
def overoptimise(
    names: Annotated[list[str] | None, typer.Argument(help="Rewards; default: all.")] = None,
    output: Output = OUTPUT,
    seed: int = 11,
) -> None:
    """Train on one reward, too fast or for too long, with the guard and without it."""
    import align
    from scripts.comparison.methods import HACKED

    for name in names or HACKED:
        for kind, changes in (("free", ("hooks.guard.patience=null", "evaluate=null")), ("guarded", ())):
            folder = output / "overoptimised" / name / kind
            settings = (*HACKED[name].changes, *changes, f"train.seed={seed}", f"output={folder}")
            if align.train(HACKED[name].recipe, settings).interrupted:
                raise SystemExit(130)


@app.command()
def reno(output: Output = OUTPUT, prompts: int = 64) -> None:
    """Optimise the noise of the embedded few-step model, beside best-of-n at equal cost."""
    asked = ["--prompts", "shapes:report", "--count", str(prompts), "--seeds", "1"]
    asked += ["--compare", "--no-path", "-o", str(output / "reno")]
    subprocess.run([sys.executable, "-m", "align", "reno", *asked], cwd=ROOT, check=True)


@app.command()
def ranks(output: Output = OUTPUT, seeds: str = "70,71,72", prompts: int = 64) -> None:
    """Climb noise by ranks alone, with the method's parts and without, beside best of n at equal renders."""
    from scripts.comparison.ranks import measure

    for seed in map(int, seeds.split(",")):
        measure(output, seed, prompts=prompts)


@app.command()
def students(
    names: Annotated[list[str] | None, typer.Argument(help="Students; default: all.")] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = SEEDS,
    prompts: Annotated[int, typer.Option(help="Report prompts of each run.")] = 1024,
    output: Output = OUTPUT,
) -> None:
    """Train students of few steps, what they begin from first, and draw the base at many."""
    from scripts.comparison.methods import STUDENTS
    from scripts.comparison.students import measure

    if unknown := set(names or ()) - STUDENTS.keys():
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(STUDENTS)}.")
    for seed in map(int, seeds.split(",")):
        for name in names or STUDENTS:
            measure(output, name, seed, prompts=prompts)


@app.command()
def aims(
    names: Annotated[
        list[str] | None, typer.Argument(help="fairness, fairness-colours, unlearn, srpo; default: all.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = SEEDS,
    prompts: Annotated[int, typer.Option(help="Report prompts of each run.")] = 768,
    output: Output = OUTPUT,
) -> None:
    """Train what has an aim of its own, and read from the pixels whether it is met and what it cost."""
    from scripts.comparison.aims import measure
    from scripts.comparison.methods import AIMS

    if unknown := set(names or ()) - AIMS.keys():
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(AIMS)}.")
    for seed in map(int, seeds.split(",")):
        for name in names or AIMS:
            measure(output, name, seed, prompts=prompts)


@app.command()
def equal(output: Output = OUTPUT, seeds: str = SEEDS, prompts: int = 64) -> None:
    """Train adjoint matching and DRaFT by one sampler, and hold their images together where the proxy is equal."""
    from scripts.comparison.equal import measure

    for seed in map(int, seeds.split(",")):
        measure(output, seed, prompts=prompts)


@app.command()
def guided(output: Output = OUTPUT, seeds: str = "60,61,62") -> None:
    """Hold the negatives of `curves --of preferences` against plain guidance, each at its best scale."""
    from scripts.comparison.guided import measure

    for seed in map(int, seeds.split(",")):
        measure(output, seed, ROOT)


@app.command()
def guidance(
    names: Annotated[list[str] | None, typer.Argument(help="Arms; default: all.")] = None,
    prompts: Annotated[int, typer.Option(help="Report prompts of each arm.")] = 500,
    scale: Annotated[float, typer.Option(help="Of guidance.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Images drawn at once.")] = 64,
    solver: Annotated[bool, typer.Option(help="Learn the solver of few steps, and draw by it.")] = True,
    output: Output = OUTPUT,
) -> None:
    """Draw by every way of guidance, and by solvers of few steps, beside plain guidance in as many calls."""
    from scripts.comparison.guidance import measure

    measure(output, names or (), prompts=prompts, w=scale, batch=batch, solver=solver)


@app.command()
def levers(
    output: Output = OUTPUT,
    seeds: str = "50,51",
    seconds: Annotated[float, typer.Option(help="Of updates, for each arm and seed.")] = 150.0,
    prompts: Annotated[int, typer.Option(help="Select prompts that are looked at.")] = 96,
) -> None:
    """Train DRaFT with each lever for as many seconds, and measure what it does to the gradient."""
    from scripts.comparison.levers import measure

    measure(output, ROOT, [int(seed) for seed in seeds.split(",")], seconds=seconds, prompts=prompts)


@app.command()
def write(output: Output = OUTPUT, page: Path = ROOT / "docs" / "lab" / "results.md") -> None:
    """Write the pages and their figures from what has been measured: results, learning curves, hacking."""
    from scripts.comparison import aims_page, curves, equal, guidance, guided, hacking, levers, ranks, reno, results
    from scripts.comparison import students as few

    makers = {
        "hacking.md": hacking.write,
        "ranks.md": ranks.write,
        "reno.md": reno.write,
        "students.md": few.write,
        "guidance.md": guidance.write,
        "levers.md": levers.write,
        "aims.md": aims_page.write,
        "equal.md": equal.write,
    }
    below = {"preferences": guided.table}
    makers |= {f"{n}.md": partial(curves.write, chapter=c, more=below.get(n)) for n, c in curves.CHAPTERS.items()}
    makers[page.name] = results.write  # from the chapters' pages
    written = [made for name, make in makers.items() if (made := make(output, page.with_name(name)))]
    if not written:
        raise typer.BadParameter(f"{output} holds no measurements: python scripts/compare.py curves")
    for made in written:
        typer.echo(made)


if __name__ == "__main__":
    app()

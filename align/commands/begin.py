"""`align init`: three questions, and a recipe of one's own."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from align.commands.fitting import family
from align.commands.values import home
from align.errors import UserError
from align.files.output import check_file, write
from align.presets import NAMES, settings
from align.registry import EMBEDDED, MODELS

GOALS = {
    "people": "what people pick",
    "prompt": "what the prompt asks for",
    "beauty": "what looks good, whatever the prompt",
}
REWARDS = {"people": ("pickscore", "imagereward"), "prompt": ("imagereward", "pickscore"),
           "beauty": ("aesthetic", "pickscore")}  # fmt: skip
"""(trained on, held out)."""
PICK = "pick: {name: clip, model: embedded:shapes-pick, form: logit}"
EYE = "eye: {model: embedded:shapes-eye}"
EMBEDDED_REWARDS = {"people": (PICK, EYE), "prompt": (EYE, PICK), "beauty": (PICK, EYE)}
TIGHT = 24  # GiB up to which memory goes before time

Model = Annotated[str | None, typer.Option(help="Hub id or folder of a diffusers pipeline.")]
Goal = Annotated[str | None, typer.Option(help="people, prompt, beauty, or a function of yours: my_rewards.py:warmth.")]
Memory = Annotated[str | None, typer.Option("--gpu-memory", "--memory", help="Of the GPU: 24GB, 16GB, 8GB ...")]
Answer = TypeVar("Answer")


def init(
    model: Model = None,
    goal: Goal = None,
    gpu_memory: Memory = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe's file.", callback=home)] = Path(
        "mine.yaml"
    ),
) -> None:
    """Ask for a model, what there should be more of, and the GPU's memory, and write a recipe with comments."""
    from align.plan.propose import gigabytes

    output = check_file(output, "--output", (".yaml", ".yml"))
    if output.exists():
        raise UserError(f"--output {output}: there is something already. Name another file, or remove it.")
    which = "Which model (Hub id or folder; align models lists them)"
    model, found = _answer(model, "--model", which, "embedded:shapes-sd", _known)
    said = ", ".join(f"{key}: {value}" for key, value in GOALS.items())
    goal = _answer(goal, "--goal", f"More of what ({said}; or file.py:function)", "people", _goal)
    embedded = model.startswith(EMBEDDED)  # small enough for any machine
    asked = "24GB" if embedded and gpu_memory is None else gpu_memory
    gib = _answer(asked, "--gpu-memory", "GPU memory", "24GB", lambda text: gigabytes(text, "--gpu-memory"))
    if embedded and goal == "beauty":
        typer.echo("the embedded world has no reward that looks past the prompt: this one is what people pick")
    if ":" in goal and (file := Path(goal.rpartition(":")[0]).expanduser()).suffix == ".py" and not file.is_file():
        typer.echo(f"{file} is not there yet: write it before you train")
    write(output, recipe(model, found, goal, gib), "--output")
    planned = "" if embedded else f" --gpu-memory {gib:g}"
    named = shlex.quote(str(output))
    typer.echo(f"{output}\nnext:  align train {named} --dry-run{planned}   # then without --dry-run")


def _answer(given: str | None, option: str, question: str, default: str, read: Callable[[str], Answer]) -> Answer:
    """What `read` makes of the option or of the answer; an answer that it refuses is asked for again."""
    while given is None:
        try:
            return read(typer.prompt(question, default=default))
        except UserError as error:
            typer.echo(f"{error}", err=True)
        except typer.Abort as ended:
            if not isinstance(ended.__context__, EOFError):  # else Ctrl-C
                raise
            typer.echo()
            raise UserError(f"{option}: is not given, and nobody answers. Give it.") from None
    return read(given)


def _known(model: str) -> tuple[str, str]:
    """(model, its family)."""
    published = getattr(MODELS.get(model), "published", ()) if model in MODELS.names() else ()
    if published:
        raise UserError(f'--model {model}: is a family, not a checkpoint. Did you mean "{published[0].checkpoint}"?')
    return model, family(model)


def _goal(goal: str) -> str:
    if goal not in GOALS and ":" not in goal:
        raise UserError(f"--goal {goal}: is not known. Choose {', '.join(GOALS)}, or a function: my_rewards.py:warmth.")
    return goal


def recipe(model: str, family_name: str, goal: str, gib: float) -> str:
    """The text of a recipe; `goal` is one of GOALS, or the path of a function."""
    embedded = model.startswith(EMBEDDED)
    published: Any = getattr(MODELS.get(family_name), "published", ())
    known: Any = next((one for one in published if one.checkpoint == model), published[0])
    steps = {"num_steps": 6, "step_rule": "ddim", "guidance_scale": 2.0} if embedded else known.sampling
    sampling = ", ".join(f"{key}: {value}" for key, value in steps.items())
    trained, held_out = _rewards(goal, embedded)
    world = "shapes" if embedded else "scenes"
    tight = gib <= TIGHT and not embedded
    if tight:
        try:
            settings({"model": {"checkpoint": model}}, _preset(gib))
        except UserError as error:  # it cannot fit
            said = str(error).removeprefix(f"model.preset={_preset(gib)}: ")
            raise UserError(f"--gpu-memory {gib:g}GB: {said}") from None
    held = "{" + held_out + "}"
    lines = [
        f"# DRaFT-1 on {model}: more of {GOALS.get(goal, goal)}, watched by what is not trained on",
        "model:",
        f"  name: {family_name}",
        f"  checkpoint: {model}",
        *([] if embedded else ["  dtype: {network: bf16, text: bf16, vae: bf16}   # what is frozen; LoRA is float32"]),
        *([f"  preset: {_preset(gib)}   # memory before time; what stands beside it stays"] * tight),
        "objective: draft   # follows the reward's gradient through the last step; align components lists others",
        f"data: {{name: prompts, prompts: {world}:train}}   # or a file of yours: prompts.txt",
        "rewards: {" + trained + "}   # align rewards lists all, and how each is hacked",
        f"sampling: {{{sampling}, last_k: 1}}",
        "adapter: {rank: 16}",
        f"optim: {{lr: {'1e-3' if embedded else '1e-4'}}}   # too high: the guard ends the run; too low: nothing moves",
        "train:",
        f"  num_updates: {40 if embedded else 1000}",
        "  batch_size: 16",
        f"  micro_batch_size: {1 if tight else 4}   # rows at once: lower it when memory runs out; no result changes",
        "hooks:",
        f"  samples: {{prompts: {world}:select, num_images: 8, every: {20 if embedded else 100}}}",
        f"  guard: {{prompts: {world}:select, rewards: {held}, every: {20 if embedded else 100}}}",
        "evaluate:   # before and after, on prompts that nothing was trained or chosen on",
        f"  prompts: {world}:report",
        "  num_prompts: 64",
        f"  rewards: {held}",
    ]
    return "\n".join(lines) + "\n"


def _preset(gib: float) -> str:
    """The largest that the GPU has; the smallest where it has less."""
    return next((name for name in NAMES if float(name.removesuffix("gb")) <= gib), NAMES[-1])


def _rewards(goal: str, embedded: bool) -> tuple[str, str]:
    """(what is trained on, what is held out), as entries of a block."""
    known = EMBEDDED_REWARDS if embedded else {key: (f"{a}: {{}}", f"{b}: {{}}") for key, (a, b) in REWARDS.items()}
    if goal in GOALS:
        return known[goal]
    name = "".join(letter for letter in goal.rpartition(":")[2] if letter.isalnum() or letter == "_") or "mine"
    return f'{name}: {{name: python, function: "{goal}"}}', known["people"][0]

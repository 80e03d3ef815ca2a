"""Kills runs at random moments until they are done, and holds what is left against the unbroken run, bit for bit.

    python scripts/chaos.py --kills 100 --output runs/chaos

One small run of the embedded model for each method. A folder is trained in, killed (SIGKILL, SIGTERM, SIGINT twice),
and trained in again by the same command until the run ends by itself; then adapter, metrics, the chosen update and the
last checkpoint's tensors must be those of the run that nobody touched. Processes are forked from one that has imported
everything, so that a kill costs a run's own work and no more. Needs a system that can fork.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is forked must have no threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SMALL = ["train.num_updates=4", "train.checkpoint_every=1", "sampling.num_steps=2"]
REPORT = ["evaluate.num_prompts=4", "evaluate.num_pictures=4"]
PANEL = ["hooks.panel.num_prompts=2", "hooks.panel.every=2"]
PICTURES = ["hooks.samples.num_images=2", "hooks.samples.every=2"]
CHOICE = ["hooks.guard=false", "hooks.panel={prompts: 'shapes:select', rewards: {gold: {}}, best: gold}"]
PAIRS = ["data.make.num_prompts=8", "data.make.batch_size=8", "data.make.temperature=1"]
STEPS = ["data.num_prompts=2", "data.num_candidates=2", "data.first_step=1", "data.gap=0.001"]
STEPS += ["train.batch_size=2", "sampling.num_steps=3"]
GROUPS = ["data.group_size=2", "train.batch_size=4"]
METHODS: dict[str, list[str]] = {
    "draft": ["draft/shapes", "sampling.last_k=1", "train.batch_size=2", *CHOICE, *PANEL, *PICTURES, *SMALL, *REPORT],
    "diffusion_dpo": ["diffusion_dpo/shapes", "train.batch_size=2", *PAIRS, *PANEL, *PICTURES, *SMALL, *REPORT],
    "spo": ["spo/shapes", *STEPS, *PANEL, *PICTURES, *SMALL[:2], *REPORT],
    "nft": ["nft/shapes", "objective.num_draws=1", *GROUPS, *PANEL, *SMALL, *REPORT],
    "unlearn": ["unlearn/shapes", "objective.target=adversarial", "train.batch_size=4", *PANEL, *SMALL, *REPORT],
    "reno": ["--count", "2", "--seeds", "1", "--batch", "1", "--iterations", "3"],
}
"""The commands: `align reno` for the last, `align train` for the others; unlearn has two optimisers."""
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM] * 2 + [signal.SIGINT] * 2


def words(method: str, folder: Path) -> list[str]:
    """The command line of a run into `folder`."""
    if method == "reno":
        return ["reno", "--prompts", "shapes:report", *METHODS[method], "-o", str(folder)]
    made = [f"data.pairs={folder}-pairs", f"data.cache={folder}-cache"] if method == "diffusion_dpo" else []
    return ["train", *METHODS[method], *made, f"output={folder}"]


def start(command: Sequence[str], log: Path) -> int:
    """The id of a process that runs `align COMMAND`, forked from this one."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from align.commands.app import app

        app(list(command))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """The exit code of a process (minus the signal that ended it), or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def disturb(process: int, folder: Path, draw: random.Random, longest: float) -> tuple[str, int]:
    """(the signal's name, or "" if the run was over before it; the exit code). One in four falls anywhere, the others
    after the run has begun to write: most of so small a run is its start."""
    begun, anywhere, wait = time.time(), draw.random() < 0.25, draw.uniform(0, longest / 2)
    until = time.monotonic() + (2 * wait if anywhere else 10 * longest)
    while time.monotonic() < until:
        if not anywhere and any(f.stat().st_mtime > begun for f in folder.glob("[!.]*")):
            anywhere, until = True, time.monotonic() + wait
        if (code := ended(process)) is not None:
            return "", code
        time.sleep(0.005)
    kind = draw.choice(SIGNALS)
    os.kill(process, kind)
    if kind is signal.SIGINT:
        time.sleep(draw.uniform(0.0, 0.2))
        if (code := ended(process)) is None:
            os.kill(process, kind)
        else:
            return kind.name, code
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    return kind.name if code else "", code


def stage(folder: Path) -> str:
    """How far a run has come, by its folder."""
    if (folder / "images.jsonl").is_file():
        return f"image {len((folder / 'images.jsonl').read_text().splitlines())}"
    if list((folder / "checkpoints").glob(".writing-*")):
        return "a save"
    if (folder / "adapter").is_dir():
        return "the report"
    records = folder / "metrics.jsonl"
    updates = records.read_text().count('"loss"') if records.is_file() else 0
    return f"update {updates}" if updates else "the start"


def result(folder: Path) -> dict[str, Any]:
    """What two runs must have in common, to the bit."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    if (folder / "images.jsonl").is_file():
        from PIL import Image
        from safetensors.torch import load_file

        pictures = {f.name: hashlib.sha256(Image.open(f).tobytes()).hexdigest() for f in sorted(folder.glob("*.png"))}
        noise = {f.name: load_file(f)["x_T"].tolist() for f in sorted(folder.glob("*.safetensors"))}
        return {"pictures": pictures, "noise": noise}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    last = max((folder / "checkpoints").glob("step-*"))
    return {
        "adapter": {f.name: digest(f) for f in sorted((folder / "adapter").glob("*.safetensors"))},
        "metrics": untimed(lines),
        "chosen": summary["chosen_update"],
        "scores": summary["scores"],
        "findings": untimed(summary["findings"]),
        "checkpoint": {f.name: digest(f) for f in sorted(last.glob("*.safetensors"))},
    }


def untimed(tree: Any) -> Any:
    """A tree without its seconds."""
    if isinstance(tree, list):
        return [untimed(value) for value in tree]
    return {k: untimed(v) for k, v in tree.items() if k != "seconds"} if isinstance(tree, dict) else tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared among the methods")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: the clock")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop drawing further kills after so long")
    options = parser.parse_args()

    import align.noise.run  # all that the runs will need, once
    import align.run  # noqa: F401

    draw = random.Random(options.seed if options.seed is not None else time.time_ns())
    options.output.mkdir(parents=True, exist_ok=True)
    begun, wrong = time.monotonic(), 0
    kills: Counter[str] = Counter()
    for number, method in enumerate(options.methods):
        share = options.kills * (number + 1) // len(options.methods) - options.kills * number // len(options.methods)
        whole, log = options.output / f"{method}-whole", options.output / f"{method}.log"
        started = time.monotonic()
        _, status = os.waitpid(start(words(method, whole), log), 0)
        if status:
            raise SystemExit(f"{method}: the unbroken run failed, see {log}")
        longest, expected = time.monotonic() - started, result(whole)
        done, rounds, met = 0, 0, Counter()
        while done < share and time.monotonic() - begun < options.seconds:
            rounds += 1
            folder = options.output / f"{method}-{rounds}"
            code = 1
            while code:
                process = start(words(method, folder), log)
                if done >= share or time.monotonic() - begun > options.seconds:
                    _, status = os.waitpid(process, 0)  # left alone to its end
                    code = os.waitstatus_to_exitcode(status)
                    assert code == 0, f"{method}: the last part failed, see {log}"
                    break
                name, code = disturb(process, folder, draw, longest)
                assert name or code == 0, f"{method}: a run ended by itself with {code}, see {log}"
                if name:
                    done += 1
                    met[stage(folder).split()[0] if stage(folder)[0] in "ui" else stage(folder)] += 1
                    kills[name] += 1
            same = result(folder) == expected
            wrong += not same
            print(f"{method} round {rounds}: {'the same' if same else 'ANOTHER RESULT'}", flush=True)
        print(f"{method}: {done} kills in {rounds} rounds: {dict(met)}, unbroken {longest:.1f} s", flush=True)
    print(f"{kills.total()} kills {dict(kills)}, {wrong} results that differ, {time.monotonic() - begun:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

"""Published code beside ours: the same embedded model, prompts or pairs, and reward; what gold gains, over CPU seconds.

    python -P scripts/bench/peers.py alignprop --peer-python PEER/bin/python --seeds 0 1 --output FOLDER
    python -P scripts/bench/peers.py dpo reno --seconds 90 --output FOLDER
    python -P scripts/bench/peers.py --output FOLDER --docs     # tables and curves of docs/lab/performance.md

AlignProp is TRL 0.11.4's own trainer, in an environment of its own (pip install trl==0.11.4 diffusers==0.30.3
transformers==4.44.2 peft==0.12.0 accelerate==0.34.2 "huggingface_hub<0.26" "numpy<2" and torch). Diffusion-DPO and
ReNO have no package: their published structures are written down in peer_loops.py and reno.py. The sides train in
turns, each for as many seconds of CPU time, so that whatever else the machine does meets all; an adapter is kept after
each turn, and all of them draw the same report prompts from the same noise. Seconds are those of updates, no loading.
Each line of FOLDER/rows.jsonl is written when it is there: a run that is cut off keeps what it has.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent))
import peer_page  # type: ignore[import-not-found]  # beside this file
import reno  # type: ignore[import-not-found]

import align
from align.config import load_recipe
from align.data._pairs import read_pairs
from align.data.prompts import load_prompts, words
from align.figures.statistics import compare
from align.hooks._base import Hook, State, Surroundings
from align.noise.optimise import optimise
from align.noise.studio import Row, Studio
from align.policy import lora
from align.policy.lora import AdapterConfig
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.registry import MODELS, REWARDS, ComponentConfig, build
from align.run import prepare
from align.shapes.embedded import resolve
from rewards import Composite

HERE = Path(__file__).resolve().parent
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # and rank 4: TRL's, which has no setting for them
MODEL = {"name": "sd", "checkpoint": "embedded:shapes-sd"}
SAMPLING = {"num_steps": 10, "guidance_scale": 2.0, "last_k": 1}
RATES = {"alignprop": 3e-3, "dpo": 1e-3}
DECAY = 0.1
BETA = 500.0
LEVERS = {"reuse": 4}
SIDES = {"alignprop": ("ours", "theirs", "levers"), "dpo": ("ours", "theirs")}
SETTINGS = {
    "alignprop": "K = {last_k} of {num_steps} steps, guidance {guidance_scale:g}, batch 16, rate {lr:g}".format(
        **SAMPLING, lr=RATES["alignprop"]
    ),
    "dpo": f"Beta {BETA:g}, batch 16, rate {RATES['dpo']:g}",
    "reno": "Settings of reno/shapes, from one noise",
}


class TurnsConfig(ComponentConfig):
    """Where adapters are kept."""

    folder: str


class Turns(Hook):
    """Our side of a turn: reads for how long to train, and says what has been done; without an answer the run ends."""

    Config = TurnsConfig

    def __init__(self, config: TurnsConfig, around: Surroundings):
        self.folder, self.result, self.turn = Path(config.folder), around.trainable, 0

    def start(self, state: State) -> None:
        self._wait(state)

    def after_update(self, state: State) -> None:
        if time.process_time() - self.started < self.seconds:
            return
        spent, self.turn = time.process_time() - self.started, self.turn + 1
        folder = self.folder / str(self.turn)
        folder.mkdir(parents=True, exist_ok=True)
        self.result.export(folder)
        print(json.dumps({"updates": state.step, "spent": spent, "folder": str(folder)}), flush=True)
        self._wait(state)

    def _wait(self, state: State) -> None:
        line = sys.stdin.readline()
        state.stop = None if line.strip() else "enough"
        self.seconds, self.started = float(line.strip() or 0), time.process_time()


def optim(pairs: Path | None) -> dict[str, float]:
    """The same for all sides of a method."""
    return {"lr": RATES["dpo" if pairs else "alignprop"], "weight_decay": DECAY}


def ours(pairs: Path | None, output: Path, seed: int, *, side: str = "ours") -> dict[str, Any]:
    """The recipe of our side, with the levers or without; `output` is its folder."""
    data = {"name": "preferences", "pairs": str(pairs)} if pairs else {"name": "prompts", "prompts": "shapes:train"}
    return {
        "model": MODEL,
        "objective": {"name": "diffusion_dpo", "beta": BETA} if pairs else {"name": "draft"},
        "data": data,
        **({} if pairs else {"rewards": {"pick": {"name": "clip", "model": "embedded:shapes-pick", "form": "logit"}}}),
        "sampling": {**SAMPLING, "levers": LEVERS} if side == "levers" else SAMPLING,
        "adapter": {"rank": 4, "targets": TARGETS},
        "optim": optim(pairs),
        "train": {"num_updates": 10**5, "batch_size": 16, "checkpoint_every": 10**5, "seed": seed},
        "hooks": {"turns": {"name": f"{Path(__file__).resolve()}:Turns", "folder": str(output / side)}},
        "output": str(output / f"run-{side}"),
    }


def theirs(pairs: Path | None, output: Path, seed: int) -> dict[str, Any]:
    """The settings of the published loop: the same in its words."""
    told: dict[str, Any] = {**SAMPLING, **optim(pairs), "batch_size": 16, "rank": 4, "targets": TARGETS, "seed": seed}
    told |= {"model": str(resolve("embedded:shapes-sd")), "pick": str(resolve("embedded:shapes-pick"))}
    told |= {"beta": BETA, "output": str(output / "theirs"), "prompts": load_prompts("shapes:train", key="prompts")}
    if pairs:
        told["pairs"] = [[p.prompt, str(p.winner), str(p.loser)] for p in read_pairs(pairs)]
    return told


def trained(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a side and turn, the sides after one another."""
    output = (arguments.output / f"{name}-{seed}").resolve()
    output.mkdir(parents=True, exist_ok=True)
    pairs = made(arguments) if name == "dpo" else None
    commands: dict[str, list[str]] = {}
    for side in SIDES[name]:
        file = output / f"{side}.json"
        told = theirs(pairs, output, seed) if side == "theirs" else ours(pairs, output, seed, side=side)
        file.write_text(json.dumps(told))
        python = arguments.peer_python if (name, side) == ("alignprop", "theirs") else sys.executable
        script = ["peer_loops.py", name] if side == "theirs" else ["peers.py", "--side"]
        commands[side] = [str(python), "-P", str(HERE / script[0]), script[1], str(file)]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    sides: dict[str, Any] = {side: subprocess.Popen(command, **pipes) for side, command in commands.items()}
    spent = dict.fromkeys(sides, 0.0)
    try:
        for turn in range(arguments.turns):
            for side in sides if turn % 2 == 0 else reversed(sides):
                row = asked(sides[side], arguments.seconds / arguments.turns)
                spent[side] += row["spent"]
                told = {"method": name, "side": side, "seed": seed, "turn": turn + 1}
                yield {**told, **row, "seconds": spent[side]}
    finally:
        for process in sides.values():
            with suppress(BrokenPipeError):  # it has ended already
                process.stdin.close()
            process.wait(timeout=120)


def asked(process: Any, seconds: float) -> dict[str, Any]:
    """What a side says of the turn that it was given."""
    with suppress(BrokenPipeError):
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{' '.join(process.args)} ended with {process.wait()}: see above")


def made(arguments: argparse.Namespace) -> Path:
    """Pairs of the base model's images, as gold's noisy voters prefer them."""
    folder = arguments.output / "pairs"
    make = [f"data.make.num_prompts={arguments.pairs}", "data.make.num_images=2"]
    if not folder.exists():
        prepare("diffusion_dpo/shapes", [f"data.pairs={folder}", *make], pairs_only=True)
    return folder


class Judge:
    """Gold's utility of what an adapter draws for the report's prompts."""

    def __init__(self, num_prompts: int):
        recipe = load_recipe("draft/shapes", {"model": MODEL, "sampling": SAMPLING}, on_disk=False)
        self.model = build(MODELS, recipe.model)
        config = AdapterConfig(rank=4, targets=TARGETS)
        self.adapter = Adapter(config, self.model.network, list(self.model.lora_targets))
        self.painter = Painter(Policy(self.model, self.adapter), recipe.sampling, Accelerator(cpu=True), seed=0)
        self.prompts = load_prompts("shapes:report", count=num_prompts, key="prompts")
        self.rewards = Composite({"gold": build(REWARDS, REWARDS.config_class("gold")())})

    def __call__(self, folder: str | None) -> torch.Tensor:
        if folder is not None:
            lora.load(self.model.network, folder)
        role = "reference" if folder is None else "result"
        return self.painter.score(role, self.prompts, self.rewards, stream="peers")[0]["gold"]


def noise(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """ReNO for four prompts at a time, by ours together and by the published structure one by one."""
    prompts = load_prompts("shapes:report", count=arguments.images, key="prompts")
    gold = build(REWARDS, REWARDS.config_class("gold")())
    rows = [Row(i, prompt) for i, prompt in enumerate(prompts)]
    for count in arguments.iterations:
        studio = Studio(load_recipe("reno/shapes", {"train.num_updates": count, "objective.num_starts": 1}))
        bench = reno.Bench(studio, time.process_time, count)
        optimise(studio, rows[:1], say=lambda _: None)  # warms up
        for turn in range(0, len(rows), 4):
            part = rows[turn : turn + 4]
            started = time.process_time()
            best = optimise(studio, part, say=lambda _: None).noise.best
            middle = time.process_time()
            alone = torch.cat([bench.alone(row) for row in part])
            ended = time.process_time()
            captions = [row.prompt for row in part]
            first, together = (studio.draw(part, x) for x in (studio.noise(part), best))
            images = {"base": first, "ours": together, "theirs": alone}
            with torch.no_grad():
                found = {side: gold(seen, captions).tolist() for side, seen in images.items()}
            spent = [middle - started, ended - middle]
            yield {"method": "reno", "seconds": spent, "iterations": count, **found}


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows; those of training with gold's change [mean, low, high] on the report's prompts."""
    judge, before = None, torch.zeros(0)
    for name in arguments.methods:
        if name == "reno":
            yield from noise(arguments)
            continue
        for seed in arguments.seeds:
            for row in trained(name, seed, arguments):
                if judge is None:
                    judge = Judge(arguments.prompts)
                    before = judge(None)
                asked = [words(prompt) for prompt in judge.prompts]
                change = compare(before, judge(row["folder"]), asked).difference
                yield row | {"change": [change.mean, *change.edges]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["alignprop", "dpo", "reno"])
    parser.add_argument("--peer-python", type=Path, help="a Python that has TRL 0.11.4")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="of CPU time, a side, seed and method")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=128, help="that are judged after each turn")
    parser.add_argument("--pairs", type=int, default=400, help="prompts that pairs are made of")
    parser.add_argument("--images", type=int, default=16, help="of ReNO")
    parser.add_argument("--iterations", type=int, nargs="+", default=[5, 15, 50], help="of ReNO")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--docs", nargs="?", type=Path, const=peer_page.PAGE, help="write what there is into the page")
    arguments = parser.parse_args()
    file = arguments.output / "rows.jsonl"
    if arguments.docs:
        peer_page.write([json.loads(line) for line in file.read_text().splitlines()], arguments.docs)
        return
    if unknown := set(arguments.methods) - set(SETTINGS):
        parser.error(f"{', '.join(sorted(unknown))}: no such method. Known: {', '.join(SETTINGS)}")
    if "alignprop" in arguments.methods and not arguments.peer_python:
        parser.error("alignprop needs --peer-python")
    arguments.output.mkdir(parents=True, exist_ok=True)
    library = f"torch {torch.__version__}, {torch.get_num_threads()} thread"
    for row in measured(arguments):
        judged = f"{arguments.images if row['method'] == 'reno' else arguments.prompts} report prompts"
        row["machine"] = f"{SETTINGS[row['method']]}; {library}, {judged}."
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--side":
        align.train(json.loads(Path(sys.argv[2]).read_text()), resume="never")
    else:
        main()

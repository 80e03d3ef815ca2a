"""Kills runs at random moments until they are done, and holds what is left against the unbroken run, bit for bit.

    python scripts/chaos.py --kills 100 --output runs/chaos
    python scripts/chaos.py --output runs/chaos --docs docs/develop/reliability.md    # only writes the counts

One small run of the embedded model for each method. A folder is trained in, killed (SIGKILL, SIGTERM, SIGINT twice),
and trained in again by the same command until the run ends by itself; then adapter, metrics, the chosen update and the
last checkpoint's tensors must be those of the run that nobody touched. Processes are forked from one that has imported
everything, so that a kill costs a run's own work and no more; each says in shared memory where it is (an update, a
save, the panel, ...), so that a kill falls within the part that was drawn. Every kill is a line of OUTPUT/kills.jsonl;
the same command goes on. Needs a system that can fork.
"""

import argparse
import gc
import importlib
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from chaos_runs import METHODS, result, words
from marked import put

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is forked must have no threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM] * 2 + [signal.SIGINT] * 2
PLACES = {
    "the start": (),
    "the pairs": (("align.data._stored", "Stored.prepare"),),
    "an update": (("align.training.trainer", "Trainer._round"),),
    "a save": (("align.training.checkpoint", "Checkpoints._save"), ("align.noise.files", "Folder.add")),
    "the panel": (("align.hooks.panel", "Panel._measure"),),
    "pictures": (("align.hooks.samples", "Samples._draw"),),
    "the evaluation": (("align.training.evaluate", "evaluate"),),
    "the report": (("align.run", "_Session._summarise"), ("align.noise.report", "write")),
}
"""{a part of a run: the functions that are it}; the start is all before the first of them."""
NAMES = [*PLACES, "between"]
WHERE = mmap.mmap(-1, 1)
"""The number in NAMES of the part that the run is in, shared with it."""


def told(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, saying in WHERE that it is at work."""

    @wraps(function)
    def inner(*args: Any, **more: Any) -> Any:
        outer, WHERE[0] = WHERE[0] or len(PLACES), number
        try:
            return function(*args, **more)
        finally:
            WHERE[0] = outer

    return inner


def watch() -> None:
    """From now on this process and its forks say where they are."""
    for number, functions in enumerate(PLACES.values()):
        for module, name in functions:
            *owners, last = name.split(".")
            holder: Any = importlib.import_module(module)
            for owner in owners:
                holder = getattr(holder, owner)
            setattr(holder, last, told(getattr(holder, last), number))


def start(command: Sequence[str], log: Path, modules: Path | None = None) -> int:
    """The id of a process that runs `align COMMAND`, forked from this one; what it imported is written to `modules`."""
    WHERE[0] = 0
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
        if modules is not None:
            modules.write_text("\n".join(sys.modules))
        sys.stdout.flush()
        os._exit(code)


def warm(modules: Path) -> None:
    """Imports what a run has imported, so that its forks need not."""
    for name in modules.read_text().splitlines():
        if name not in sys.modules and not name.startswith("__"):
            try:
                importlib.import_module(name)
            except Exception:  # a module that makes itself
                continue
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a thread cannot be forked"


def unbroken(method: str, output: Path) -> dict[str, float]:
    """Trains the run that nobody touches; {part: seconds of one visit}, by looking every millisecond."""
    log, modules = output / f"{method}.log", output / f"{method}.modules"
    process = start(words(method, output / f"{method}-whole"), log, modules)
    seen, visits, last = dict.fromkeys(NAMES, 0.0), Counter[str](), -1
    while (code := ended(process)) is None:
        here, now = WHERE[0], time.monotonic()
        visits[NAMES[here]] += here != last
        time.sleep(0.001)
        seen[NAMES[here]] += time.monotonic() - now
        last = here
    if code:
        raise SystemExit(f"{method}: the unbroken run failed, see {log}")
    warm(modules)
    return {name: seen[name] / visits[name] for name in visits}


def ended(process: int) -> int | None:
    """The exit code of a process (minus the signal that ended it), or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def disturb(process: int, draw: random.Random, parts: dict[str, float]) -> dict[str, Any]:
    """Signals a run within a part that is drawn; {"signal": "" if the run was over before it, "exit", "place"}."""
    drawn = draw.choice(sorted(set(parts) - {"between"}))
    chance, until = draw.choice([0.5, 1.0]), None
    last = -1
    while until is None or time.monotonic() < until:
        here = WHERE[0]
        if until is None and here != last:
            if NAMES[here] == "the evaluation" and draw.random() < 0.75:  # what was drawn before is done already
                drawn, chance = draw.choice(["the evaluation", "the report"]) if drawn != "the report" else drawn, 1.0
            if NAMES[here] == drawn and draw.random() < chance:
                until = time.monotonic() + draw.uniform(0, parts[drawn])
        last = here
        if (code := ended(process)) is not None:
            return {"signal": "", "exit": code, "place": ""}
        time.sleep(0.001)
    kind, place = draw.choice(SIGNALS), NAMES[WHERE[0]]
    os.kill(process, kind)
    if kind is signal.SIGINT:
        time.sleep(draw.uniform(0.0, 0.2))
        if (code := ended(process)) is not None:
            return {"signal": kind.name if code else "", "exit": code, "place": place}
        os.kill(process, kind)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"signal": kind.name if code else "", "exit": code, "place": place}


def table(records: Sequence[dict[str, Any]]) -> str:
    """The counts as the page of docs has them."""
    kills = [r for r in records if "signal" in r]
    rounds = list({(r["method"], r["round"]): r for r in records if "same" in r}.values())  # the last word counts
    text = ["| method | kills | runs | where | other results |", "|---|---|---|---|---|"]
    for method in METHODS:
        own = Counter(r["place"] for r in kills if r["method"] == method)
        done = [r["same"] for r in rounds if r["method"] == method]
        where = ", ".join(f"{name} {own[name]}" for name in NAMES if own[name])
        text.append(f"| `{method}` | {own.total()} | {len(done)} | {where} | {done.count(False)} |")
    by = ", ".join(f"{name} {n}" for name, n in Counter(r["signal"] for r in kills).most_common())
    wrong = sum(not r["same"] for r in rounds)
    return "\n".join([*text, "", f"{len(kills)} kills ({by}) in {len(rounds)} runs; {wrong} ended otherwise."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="in all, shared among the methods")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: the clock")
    parser.add_argument("--compare", action="store_true", help="compare the results that are there again")
    parser.add_argument("--docs", type=Path, help="the page whose table the counts become")
    options = parser.parse_args()
    draw = random.Random(options.seed if options.seed is not None else time.time_ns())
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "kills.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def note(**record: Any) -> None:
        records.append(record)
        with file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    if options.kills:
        import align.noise.run
        import align.run  # noqa: F401

        watch()
    for number, method in enumerate(options.methods if options.kills else ()):
        share = options.kills * (number + 1) // len(options.methods) - options.kills * number // len(options.methods)
        kills = [r for r in records if "signal" in r and r["method"] == method]
        rounds = {r["round"]: r["same"] for r in records if "same" in r and r["method"] == method}
        if len(kills) >= share and {k["round"] for k in kills} <= {*rounds}:
            continue
        parts, log = unbroken(method, options.output), options.output / f"{method}.log"
        expected, done, turn = result(options.output / f"{method}-whole"), len(kills), len(rounds)
        while done < share or {k["round"] for k in kills} - {*rounds}:
            turn, code = turn + 1, 1
            folder = options.output / f"{method}-{turn}"
            while code:
                process = start(words(method, folder), log)
                if done >= share:
                    _, status = os.waitpid(process, 0)  # left alone to its end
                    met: dict[str, Any] = {"signal": "", "exit": os.waitstatus_to_exitcode(status)}
                else:
                    met = disturb(process, draw, parts)
                code = met["exit"]
                assert met["signal"] or code == 0, f"{method}: a run ended by itself with {code}, see {log}"
                if met["signal"]:
                    done += 1
                    kills.append({"round": turn, **met})
                    note(method=method, round=turn, **met)
            rounds[turn] = result(folder) == expected
            note(method=method, round=turn, same=rounds[turn])
    for method, turn in dict.fromkeys((r["method"], r["round"]) for r in records if "same" in r and options.compare):
        folders = [options.output / f"{method}-{which}" for which in ("whole", turn)]
        note(method=method, round=turn, same=result(folders[0]) == result(folders[1]))
    if options.docs:
        put(options.docs, "scripts/chaos.py", table(records))
    print(table(records))
    raise SystemExit("; 0 ended otherwise" not in table(records))


if __name__ == "__main__":
    main()

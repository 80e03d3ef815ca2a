"""Breaks the code in one place at a time and looks whether a quick test of the same room notices.

    python scripts/mutants.py --count 220 --output runs/mutants --docs docs/develop/testing.md

All places of the rooms below where an operator, a constant, a statement or the order of two arguments could be another
are listed, and every n-th is tried. The tests are collected once. A fork of that process runs each test file that names
a module and notes which functions each test calls and how long it takes; then one fork for each mutant puts the broken
code into the function that is in memory, and runs the tests that call it, the quickest first, for so many seconds.
What is written is resumed. scripts/mutants.json says why one is not noticed, or which test is to be run for it that the
choice by names and seconds leaves out.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import random
import re
import resource
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from marked import put
from mutations import Place, codes, key, places

ROOT = Path(__file__).resolve().parent.parent
CODE = ["samplers/*.py", "align/objectives/*.py", "align/sampling/*.py", "align/policy/*.py"]
CODE += ["align/training/update.py", "align/figures/statistics.py", "align/evaluation/statistics.py"]
TESTS = ["samplers", "align/objectives", "align/policy", "align/sampling", "align/training/test_update.py"]
TESTS += ["align/training/test_trainer.py", "align/training/test_movers.py", "align/figures/test_statistics.py"]
TESTS += ["align/figures/test_coverage.py", "parity/test_sd_grids.py"]
TESTS += ["align/evaluation/test_evaluate_statistics.py", "align/training/test_out_of_memory.py"]
OPTIONS = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--timeout=120"]
OPTIONS += ["-m", "not slow and not gpu and not network"]
MAPPED = 8.0  # seconds of a test file that are looked at
QUICK = 4.0  # seconds that a test may take to be run for a mutant
Function = tuple[str, str, int]


class Plugin:
    """Takes the place of pytest's loop over the tests."""

    def __init__(self, options: argparse.Namespace, mutants: list[Place], told: dict[str, str]):
        self.options, self.mutants, self.told = options, mutants, told
        self.files: dict[Path, list[pytest.Item]] = {}
        self.of: dict[CodeType, str] = {}
        self.map, self.results = options.output / "map.jsonl", options.output / "results.jsonl"
        self.known = {(line["file"], line["digest"]): line["tests"] for line in read(self.map)}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        live: dict[Function, list[FunctionType]] = {}
        for module in sorted({module_of(place) for place in self.mutants}):
            importlib.import_module(module)
        for found in gc.get_objects():
            if isinstance(found, FunctionType) and found.__code__.co_filename.startswith(str(ROOT)):
                live.setdefault(key(found.__code__), []).append(found)
        for item in session.items:
            self.files.setdefault(item.path, []).append(item)
        gc.freeze()
        self.of = {
            c: short(p.function) for p in self.mutants for f in live.get(p.function, ()) for c in codes(f.__code__)
        }
        done = {line["id"] for line in read(self.results)}
        for number, place in enumerate(self.mutants):
            if place.id in done:
                continue
            tests = self.chosen(place)
            record = {"id": place.id, "tests": len(tests)} | broken(place, live, tests, session)
            append(self.results, record)
            print(f"{number + 1}/{len(self.mutants)} {record['outcome']} {place.id}", file=sys.stderr, flush=True)
        return True

    def mapped(self, path: Path) -> dict[str, tuple[float, list[str]]]:
        """{test of this file: (seconds, the functions that it calls)}."""
        name = str(path.relative_to(ROOT))
        known = name, hashlib.sha256(path.read_bytes()).hexdigest()
        if known not in self.known:
            self.known[known] = forked(lambda: traced(self.files[path], self.of), limit=300) or {}
            append(self.map, {"file": name, "digest": known[1], "tests": self.known[known]})
            print(f"mapped {name}: {len(self.known[known])} of {len(self.files[path])}", file=sys.stderr, flush=True)
        return self.known[known]

    def chosen(self, place: Place) -> list[pytest.Item]:
        """The test that is told, if it passes; else those that call the function: of the room's files that name its
        module, else its others, else others."""
        if (told := self.told.get(place.id, "")).startswith("tests/"):
            items = [item for each in self.files.values() for item in each if item.nodeid.startswith(told)]
            passing = forked(lambda: traced(items, {}), limit=90) or {}
            return [item for item in items if item.nodeid in passing]
        file = place.function[0].removeprefix(f"{ROOT}/")
        package, _, last = module_of(place).rpartition(".")
        word = re.compile(rf"\b{package}\.{last}\b|from {package} import [^#]*\b{last}\b")
        room = [path for path in self.files if f"tests/{file.rpartition('/')[0]}/" in str(path)]
        named = [
            path for path in self.files if word.search(path.read_text()) or (last != "__init__" and last in path.stem)
        ]
        spent, taken = 0.0, []
        own, others = [path for path in named if path in room], [path for path in named if path not in room]
        for paths in (own, [path for path in room if path not in named], others):
            costs = {
                test: cost
                for path in paths
                for test, (cost, called) in self.mapped(path).items()
                if short(place.function) in called
            }
            items = sorted(
                (item for path in paths for item in self.files[path] if costs.get(item.nodeid, QUICK) < QUICK),
                key=lambda item: costs[item.nodeid],
            )
            for item in items:
                if (spent := spent + costs[item.nodeid]) > self.options.seconds:
                    return taken
                taken.append(item)
            if taken:
                return taken
        return taken


def module_of(place: Place) -> str:
    return place.function[0].removeprefix(f"{ROOT}/").removesuffix(".py").replace("/", ".")


def short(function: Function) -> str:
    return f"{function[0].removeprefix(f'{ROOT}/')} {function[1]}"


def traced(items: list[pytest.Item], of: dict[CodeType, str]) -> dict[str, tuple[float, list[str]]]:
    """Runs tests; {its id: (seconds, functions called)} of those that pass."""
    found, start = {}, sum(os.times()[:4])
    for item, after in zip(items, [*items[1:], None], strict=True):
        seen: set[str] = set()

        def look(frame: FrameType, event: str, _: Any, seen: set[str] = seen) -> None:
            if event == "call" and frame.f_code in of:
                seen.add(of[frame.f_code])

        if sum(os.times()[:4]) - start > MAPPED:
            break
        began, failed = sum(os.times()[:4]), item.session.testsfailed
        sys.setprofile(look)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        sys.setprofile(None)
        if item.session.testsfailed == failed:
            found[item.nodeid] = sum(os.times()[:4]) - began, sorted(seen)
    return found


def broken(place: Place, live: Any, tests: list[pytest.Item], session: pytest.Session) -> dict[str, Any]:
    """{"outcome": killed, survived, time, uncalled or unfit; "by": the test}."""
    code = place.code()
    functions = live.get(place.function, ())
    if code is None or not functions or any(len(f.__code__.co_freevars) != len(code.co_freevars) for f in functions):
        return {"outcome": "unfit"}
    if not tests:
        return {"outcome": "uncalled"}

    def work() -> dict[str, Any]:
        for function in functions:
            function.__code__ = code
        for item, after in zip(tests, [*tests[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if session.testsfailed:
                return {"outcome": "killed", "by": item.nodeid}
        return {"outcome": "survived"}

    return forked(work, limit=90) or {"outcome": "time"}


def forked(work: Any, limit: int) -> Any:
    """What `work` returns in a fork; None if that takes more than `limit` seconds of CPU, or crashes."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        answer = b""
        try:
            answer = json.dumps(work()).encode()
        finally:
            with os.fdopen(target, "wb") as stream:
                stream.write(answer)
            os._exit(0)
    os.close(target)
    with os.fdopen(source, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--output", type=Path, default=Path("runs/mutants"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of tests for a mutant")
    parser.add_argument("--again", action="store_true", help="try what was not killed and has no reason again")
    parser.add_argument("--docs", type=Path, help="the page whose table the result becomes")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    options.output.mkdir(parents=True, exist_ok=True)
    files = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    every = [place for path in files for place in places(path, str(path.relative_to(ROOT)))]
    step = len(every) / options.count
    tried = [every[int(step * (number + 0.5))] for number in range(options.count)]
    random.Random(0).shuffle(tried)  # what is done of a room when it ends early is even too
    tried.sort(
        key=lambda place: "/objectives/" in place.function[0] or "/policy/" in place.function[0]
    )  # slow tests last
    results = options.output / "results.jsonl"
    told: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text())
    reasons = {id: text for id, text in told.items() if not text.startswith("tests/")}
    if options.again:
        kept = [line for line in read(results) if line["outcome"] in ("killed", "time") or line["id"] in reasons]
        results.write_text("".join(json.dumps(line) + "\n" for line in kept))
    if not options.docs:
        pytest.main([*OPTIONS, *(str(ROOT / "tests" / name) for name in TESTS)], plugins=[Plugin(options, tried, told)])
    text = table(tried, {line["id"]: line for line in read(results)}, reasons, len(every))
    if options.docs:
        put(options.docs, "scripts/mutants.py", text)
    print(text)


def table(tried: list[Place], results: dict[str, Any], reasons: dict[str, str], every: int) -> str:
    """The result as the page has it."""
    rooms: dict[str, Counter[str]] = {}
    left = []
    for place in tried:
        if (outcome := results.get(place.id, {}).get("outcome", "not run")) == "unfit":
            continue
        noticed = outcome in ("killed", "time")
        room = short(place.function).split(" ")[0].rpartition("/")[0]
        alike = not noticed and reasons.get(place.id, "").startswith("equivalent")
        rooms.setdefault(room, Counter())["noticed" if noticed else "equivalent" if alike else outcome] += 1
        if not noticed and outcome != "not run":
            file, _, rest = place.id.partition(" ")
            left.append(f"| `{file}` | `{rest.replace('|', chr(92) + '|')}` | {reasons.get(place.id, outcome)} |")
    lines = ["| room | tried | noticed | equivalent | not noticed |", "|---|---|---|---|---|"]
    rooms["all"] = sum(rooms.values(), Counter())
    for room, counted in rooms.items():
        ran = counted.total() - counted["not run"]
        missed = counted["survived"] + counted["uncalled"]
        lines.append(f"| `{room}` | {ran} | {counted['noticed']} | {counted['equivalent']} | {missed} |")
    whole = rooms["all"]
    possible = whole["noticed"] + whole["survived"] + whole["uncalled"]
    score = f"{whole['noticed'] / possible:.1%}" if possible else "none"
    ran = whole.total() - whole["not run"]
    told = f"Noticed of those that change what is computed: {score}. {ran} of {len(tried)} were run, drawn evenly from "
    told += f"{every} places."
    return "\n".join([*lines, "", told, "", "| file | not noticed | why |", "|---|---|---|", *left])


if __name__ == "__main__":
    main()

"""All that is to be measured on a GPU, in one run of at most eight minutes: what matters most first, a row at a time.

    python -P scripts/bench/on_gpu.py --output $OUT            # where there is a GPU
    python -P scripts/bench/on_gpu.py --output FOLDER --docs   # here: its rows into docs/lab/performance.md
    python -P scripts/bench/on_gpu.py --output FOLDER --tiny   # the way, walked on a CPU in a minute

Each job is a process with a limit of its own, so that one that hangs or runs out of memory costs its row alone. Rows
are appended to OUTPUT/rows.jsonl as they come; a run that is cut off leaves those that it has, and a second one in the
same folder goes on behind them. The matrix rate is measured, not looked up: the best of ten square products.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "scripts" / "bench"
PAGE = ROOT / "docs" / "lab" / "performance.md"
BEGIN, END = "<!-- written by scripts/bench/on_gpu.py -->", "<!-- end on_gpu -->"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SIZES = (  # in the order of their value; GiB of the network in bfloat16 comes from its published size
    (SD15, ["--reward", "hpsv2", "--last-k", "1"]),
    ("stabilityai/stable-diffusion-xl-base-1.0", ["--reward", "hpsv2", "--checkpoint-blocks"]),
    ("stabilityai/stable-diffusion-3.5-medium", ["--reward", "pickscore", "--checkpoint-blocks"]),
    ("black-forest-labs/FLUX.1-dev", ["--reward", "pickscore", "--checkpoint-blocks"]),
    ("black-forest-labs/FLUX.2-klein-base-4B", ["--reward", "pickscore", "--checkpoint-blocks"]),
    ("Tongyi-MAI/Z-Image", ["--reward", "pickscore", "--checkpoint-blocks"]),
    ("Qwen/Qwen-Image", ["--reward", "pickscore", "--checkpoint-blocks"]),
    (SD15, ["--reward", "hpsv2", "--last-k", "5", "--methods", "draft"]),
)
NARROW = json.dumps({"block_out_channels": [32, 32, 32, 32]})
TINY = ["--device", "cpu", "--dtype", "float32", "--size", "64", "64", "--num-steps", "2"]
TINY += ["--network", NARROW, "--vae", NARROW]
WHOLE = ["--dtype", "bfloat16", "--updates", "3", "train.batch_size=4", "train.micro_batch_size=2"]
SMALL = ["--fraction", "1/20", "sampling.num_steps=2", "train.batch_size=1", "train.micro_batch_size=1"]


@dataclass(frozen=True)
class Job:
    """A command, the seconds that it may take, and how its output becomes rows."""

    name: str
    command: list[str]
    limit: float
    rows: Callable[[str], list[dict[str, Any]]] = field(default=lambda text: objects(text))


def objects(text: str) -> list[dict[str, Any]]:
    """Every line that is a JSON object."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def jobs(device: dict[str, Any], *, tiny: bool) -> Iterator[Job]:
    """What is run, most valuable first."""
    python, tests = (
        [sys.executable, "-P"],
        [sys.executable, "-m", "pytest"],
    )  # twice quiet, it would not say how many passed
    turns = [*TINY, "--turns", "1"] if tiny else ["--turns", "3"]
    turns += ["--peak-tflops", str(device["tflops"])]
    rehearse = [*python, str(ROOT / "scripts" / "rehearse.py"), "draft/sd15_hpsv2", *(SMALL if tiny else WHOLE)]
    tests += ["tests/scripts/test_rehearse.py", "-k", "listed"] if tiny else ["-m", "gpu", "tests/gpu"]
    for number, (name, words) in enumerate(sized(device["gib"])):
        if not tiny or number == 0:
            options = [] if tiny else words
            yield Job(name, [*python, str(HERE / "full_size.py"), name, *options, *turns], 75)
        if number == 0:
            yield Job("rehearsal", rehearse, 120, rehearsed)
            yield Job("tests/gpu", tests, 150, tested)
    few = ["--iterations", "2", "--repeats", "1", "--batches", "1"] if tiny else ["--repeats", "3"]
    yield Job("reno/shapes", [*python, str(HERE / "reno.py"), *few], 60, timed)


def sized(gib: float) -> Iterator[tuple[str, list[str]]]:
    """(checkpoint, options): in NF4 where the network's bfloat16 weights are more than seven tenths of the memory."""
    from align.models._real_size import find

    for name, options in SIZES:
        known = find(name)
        assert known is not None, name
        large = 2e9 * known[1].billions / 2**30 > 0.7 * gib
        yield name, [*options, "--quantize", "nf4"] if large else options


def rehearsed(text: str) -> list[dict[str, Any]]:
    """The whole way of a recipe: written, trained, loaded by the stock pipeline."""
    kept = {"method": "draft, whole run", "reward": "hpsv2"}
    return [
        {"checkpoint": f["checkpoint"], **kept, "seconds": f["seconds"][-1], "peak_gib": f["peak_gib"]}
        for f in objects(text)
    ]


def tested(text: str) -> list[dict[str, Any]]:
    """pytest's last line."""
    lines = [line.strip("= ") for line in text.splitlines() if re.search(r"\d+ (passed|failed|error|skipped)", line)]
    return [{"tests": lines[-1] if lines else "no end"}]


def timed(text: str) -> list[dict[str, Any]]:
    """An iteration of ReNO at its batches, and the published structure."""
    found = {m[1].strip(): float(m[2]) for m in re.finditer(r"^  (.+?) +([\d.]+) s$", text, re.MULTILINE)}
    wanted = {k: v for k, v in found.items() if k.startswith("iteration") or k == "published"}
    return [{"checkpoint": "embedded:shapes-turbo", "method": f"reno, {k}", "seconds": v} for k, v in wanted.items()]


def described(*, tiny: bool) -> dict[str, Any]:
    """The device: its name, GiB, and its measured rate of bfloat16 products in TFLOP/s."""
    import torch

    cuda = torch.cuda.is_available()
    where, side, dtype = ("cuda", 8192, torch.bfloat16) if cuda and not tiny else ("cpu", 512, torch.float32)
    a, best = torch.randn(side, side, device=where, dtype=dtype), float("inf")
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, a)
        if where == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    if where == "cuda":
        name, gib = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
    else:
        name, gib = f"{platform.processor() or platform.machine()}, CPU", 1024.0
    return {
        "device": name,
        "gib": round(gib, 1),
        "tflops": round(2 * side**3 / best / 1e12, 3),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--seconds", type=float, default=480, help="of all jobs together")
    parser.add_argument("--docs", nargs="?", type=Path, const=PAGE, help="write the rows there, and run nothing")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU")
    arguments = parser.parse_args()
    file = arguments.output / "rows.jsonl"
    if arguments.docs:
        write(objects(file.read_text(encoding="utf-8")), arguments.docs)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the job that runs ends too
    started = time.perf_counter()
    there = objects(file.read_text(encoding="utf-8")) if file.exists() else []
    device = described(tiny=arguments.tiny)
    if not there:
        keep(file, device)
    for job in jobs(device, tiny=arguments.tiny):
        left = arguments.seconds - (time.perf_counter() - started)
        if left < 10 or any(row.get("job") == label(job) for row in there):
            continue
        for row in run(job, min(job.limit, left)):
            keep(file, {"job": label(job), **row})
    write(objects(file.read_text(encoding="utf-8")), arguments.output / "performance.md")


def label(job: Job) -> str:
    """Of a job among the others."""
    given = job.command.index("--last-k") + 1 if "--last-k" in job.command else 0
    return f"{job.name}, K = {job.command[given]}" if given else job.name


def run(job: Job, limit: float) -> list[dict[str, Any]]:
    """Its rows; what went wrong is one too. It goes with all that it has started."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(job.command, cwd=ROOT, start_new_session=True, **pipes)
    late = None
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = f"not done within {limit:.0f} s" if process.poll() is None else None
        _end(process)
        out, err = process.communicate()
    finally:
        _end(process)
    rows = job.rows(out)
    if late or (process.returncode and job.rows is not tested):
        last = (err.strip().splitlines() or ["no message"])[-1]
        rows.append({"checkpoint": job.name, "failed": late or last[:200]})
    return rows


def _end(process: Any) -> None:
    """Its whole group: what it has started may still hold its output, or the GPU."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def keep(file: Path, row: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def write(rows: list[dict[str, Any]], page: Path) -> None:
    """The table, between its marks in `page`, or as a page of its own."""
    text = f"{BEGIN}\n{table(rows)}\n{END}"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    if BEGIN in old:
        text = old[: old.index(BEGIN)] + text + old[old.index(END) + len(END) :]
    elif old:
        text = f"{old.rstrip()}\n\n## On a GPU\n\n{text}\n"
    page.write_text(text, encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the device, a line a measurement, and what did not end."""
    device = next(row for row in rows if "device" in row)
    rate = f"{device['tflops']:g} TFLOP/s measured in square products"
    lines = [
        f"{device['device']}, {device['gib']:g} GiB, {rate}; torch {device['torch']}, random weights, one image.",
        "",
    ]
    lines += [
        "| model | method | K | pixels | reward | s an update | peak, GiB | share of the rate |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        if "seconds" in row:
            size = " x ".join(map(str, row.get("size", []))) or "-"
            kept = f" ({row['kept']})" if row.get("kept") else ""
            share = f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "-"
            cells = [row["checkpoint"] + kept, row["method"], row.get("last_k", "-"), size, row.get("reward", "-")]
            cells += [f"{row['seconds']:.3g}", f"{row['peak_gib']:.1f}" if "peak_gib" in row else "-", share]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    notes = [f"`tests/gpu`: {row['tests']}." for row in rows if "tests" in row]
    notes += [f"{row['checkpoint']}: {row['failed']}." for row in rows if "failed" in row]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


if __name__ == "__main__":
    main()

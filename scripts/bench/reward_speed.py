"""What a reward costs: images per second forward, and forward and backward, and how much of it is preprocessing.

    python scripts/bench/reward_speed.py                                   # every reward below, one 512-pixel image
    python scripts/bench/reward_speed.py pickscore imagereward --batch 8 --device cuda --dtype bfloat16
    python scripts/bench/reward_speed.py --docs docs/lab/performance.md        # and write the table "Rewards" there

Networks have the published architecture and random weights (random_rewards.py). The reference path is what scoring
scripts do: the same network without a gradient behind tensor -> 8 bits -> PIL -> the library's processor -> tensor.
Prompts that have an embedding of their own are encoded before the clock starts: they come back in every epoch. On the
CPU the clock is the process's CPU time, so that a busy machine does not count.
"""

import argparse
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from random_rewards import REAL, build, holder

from rewards._preprocess import Preprocess
from rewards.hpsv2 import Padded

PROMPT = "a green bicycle leaning against a low brick wall in the rain"
BEGIN, END = "<!-- written by scripts/bench/reward_speed.py -->", "<!-- end -->"
TITLES = (
    "reward", "network", "forward, images/s", "reference path, images/s", "forward + backward, images/s",
    "preprocessing's share", "ours, ms", "reference's, ms",
)  # fmt: skip


def reference_path(images: Tensor, preprocess: Preprocess) -> Tensor:
    """8 bits, PIL and transformers' processor; HPSv2's own steps where they are asked for."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    levels = images.detach().mul(255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(picture) for picture in levels]
    if isinstance(preprocess, Padded):
        return torch.stack([_padded(picture, preprocess) for picture in pictures]).to(images.device)
    if isinstance(preprocess.size, tuple):
        height, width = preprocess.size
        processor: Any = SiglipImageProcessorPil(size={"height": height, "width": width})
    else:
        assert preprocess.crop is not None
        assert preprocess.size is not None
        crop = {"height": preprocess.crop[0], "width": preprocess.crop[1]}
        processor = CLIPImageProcessorPil(size={"shortest_edge": preprocess.size}, crop_size=crop)  # type: ignore[arg-type]
    return processor(pictures, return_tensors="pt")["pixel_values"].to(images.device)


def _padded(picture: Any, preprocess: Padded) -> Tensor:
    """(3, h, w): the long side resized as a tensor, black around it."""
    from torchvision.transforms import functional as steps

    assert isinstance(preprocess.size, int)
    scale = preprocess.size / max(picture.size)
    height, width = round(picture.height * scale), round(picture.width * scale)
    image = steps.resize(steps.to_tensor(picture), [height, width], steps.InterpolationMode.BICUBIC, antialias=True)
    down, right = preprocess.size - height, preprocess.size - width
    image = steps.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2])
    return steps.normalize(image, list(preprocess.mean), list(preprocess.std))


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times)


def measure(name: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    reward = build(name, dtype=args.dtype, device=args.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(args.batch, 3, args.size, args.size, generator=generator).to(args.device)
    prompts = [PROMPT] * args.batch

    def forward() -> None:
        with torch.no_grad():
            reward(images, prompts)

    def backward(through: Callable[[Tensor], Tensor]) -> None:
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(through(leaf).sum(), leaf)

    forward()
    once = seconds(forward, args.device, args.repeats)
    both = seconds(lambda: backward(lambda x: reward(x, prompts)), args.device, args.repeats)
    theirs, tail = None, ["-"] * 3
    if part := holder(reward):
        ours = part.preprocess
        alone, with_gradient, reference = (
            seconds(work, args.device, 5)
            for work in (lambda: ours(images), lambda: backward(ours), lambda: reference_path(images, ours))
        )
        part.preprocess = lambda x: reference_path(x, ours)
        theirs = seconds(forward, args.device, args.repeats)
        milliseconds = [f"{1000 * x / args.batch:.1f}" for x in (alone, reference)]
        tail = [f"{100 * with_gradient / both:.1f} %", *milliseconds]
    speeds = ["-" if x is None else f"{args.batch / x:.3g}" for x in (once, theirs, both)]
    return f"| {' | '.join([name, REAL[name].network, *speeds, *tail])} |"


def hardware(device: str) -> str:
    """The machine in words."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def conditions(args: argparse.Namespace) -> str:
    """What the figures of one table have in common."""
    clock = "CPU time of the process" if args.device == "cpu" else "wall time"
    return (
        f"{hardware(args.device)}; torch {torch.__version__}, {args.dtype}, batch {args.batch} of {args.size}-pixel "
        f"images, random weights; {clock}, median of {args.repeats}."
    )


def write(docs: Path, said: str, line: str) -> None:
    """Puts a line into the table of a page, in the place of the reward's last one; lines that were measured under other
    conditions go. The table stands between two marks, at first in a section of its own at the page's end."""
    text = docs.read_text(encoding="utf-8") if docs.is_file() else "# Performance\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n## Rewards\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    old = re.findall(r"^\| (\w+) \|.*$", table, re.MULTILINE) if said in table else []
    lines = {name: next(x for x in table.splitlines() if x.startswith(f"| {name} |")) for name in old if name in REAL}
    lines[line.split()[1]] = line
    titles = [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    body = [BEGIN, said, "", *titles, *(lines[name] for name in REAL if name in lines), END]
    docs.write_text(before + "\n".join(body) + after, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewards", nargs="*", default=list(REAL), metavar="REWARD", help=", ".join(REAL))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--docs", type=Path, help="a page into which the lines are written")
    args = parser.parse_args()
    if wrong := [name for name in args.rewards if name not in REAL]:
        parser.error(f"{', '.join(wrong)}: not measured here. Choose from {', '.join(REAL)}.")
    print(f"{conditions(args)}\n\n| {' | '.join(TITLES)} |\n{'|---' * len(TITLES)}|", flush=True)
    for name in args.rewards:
        print(line := measure(name, args), flush=True)
        if args.docs:
            write(args.docs, conditions(args), line)


if __name__ == "__main__":
    main()

"""What a reward costs: images per second forward, and forward and backward, and how much of it is preprocessing.

    python scripts/bench/reward_speed.py                                   # every reward below, one 512-pixel image
    python scripts/bench/reward_speed.py pickscore imagereward --batch 8 --device cuda --dtype bfloat16
    python scripts/bench/reward_speed.py --docs docs/performance.md        # and write the section "Rewards" there

Networks have the published architecture and random weights: nothing is downloaded, and time does not depend on values.
The reference path is what scoring scripts do: tensor -> 8 bits -> PIL -> the library's processor -> tensor, which
carries no gradient. On the CPU the clock is the process's CPU time, so that a busy machine does not count.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # there this file would be the package `rewards`

from align.registry import REWARDS, build
from rewards import Reward
from rewards._preprocess import Preprocess

PROMPT = "a green bicycle leaning against a low brick wall in the rain"
VIT_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                    "hidden_act": "gelu"},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                      "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu"},
}  # fmt: skip
VIT_L: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "patch_size": 14},
}  # fmt: skip
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SIGLIP: dict[str, Any] = {
    "text_config": SO400M | {"vocab_size": 32000},
    "vision_config": SO400M | {"image_size": 384, "patch_size": 14},
}
DINOV2 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14}
CROP = Preprocess(224, crop=(224, 224))
SQUASH = Preprocess((384, 384), mean=(0.5,) * 3, std=(0.5,) * 3)
# reward: (settings, architecture, preprocessing, the network in words)
REAL: dict[str, tuple[dict[str, Any], dict[str, Any], Preprocess | None, str]] = {
    "pickscore": ({}, VIT_H, CROP, "CLIP ViT-H/14, 224 px"),
    "clip": ({}, VIT_L, CROP, "CLIP ViT-L/14, 224 px"),
    "aesthetic": ({}, VIT_L, CROP, "CLIP ViT-L/14, 224 px"),
    "imagereward": ({}, {}, CROP, "BLIP ViT-L/16 + BERT, 224 px"),
    "siglip": ({}, SIGLIP, SQUASH, "SigLIP so400m/14, 384 px"),
    "dino": ({}, DINOV2, Preprocess(256, crop=(224, 224)), "DINOv2 ViT-B/14, 224 px"),
    "jpeg": ({"form": "rate"}, {}, None, "none"),
    "symmetry": ({}, {}, None, "none"),
    "colourfulness": ({}, {}, None, "none"),
    "sharpness": ({}, {}, None, "none"),
}


class Words:
    """Stands for a tokenizer: as many tokens as are asked for."""

    def __call__(self, texts: list[str], *, max_length: int = 32, **_: Any) -> Any:
        from transformers import BatchEncoding

        ids = torch.full((len(texts), max_length), 7)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def add_tokens(self, *_: Any, **__: Any) -> None:
        """There is no vocabulary."""


@contextmanager
def without_checkpoints(architecture: dict[str, Any], preprocess: Preprocess | None) -> Iterator[None]:
    """Networks are made from their architecture where a checkpoint would be read."""

    def random_network(kind: Any, model: str, **_: Any) -> Any:
        if kind.__name__ == "AutoModel":
            from transformers import Dinov2Config, Dinov2Model

            return Dinov2Model(Dinov2Config(**architecture))
        return kind(kind.config_class(**architecture))

    def random_head(*_: Any) -> list[tuple[Tensor, Tensor]]:
        sizes = [architecture.get("projection_dim", 1152), 1024, 128, 64, 16, 1]
        return [(torch.randn(b, a) / a**0.5, torch.zeros(b)) for a, b in pairwise(sizes)]

    stand_ins: dict[str, Any] = {
        "load_hf": random_network,
        "load_tokenizer": lambda model: Words(),
        "hf_preprocess": lambda model: preprocess,
        "read_head": random_head,
        "given_file": lambda *_: Path(),
        "load_original": lambda *_, **__: None,
    }
    with ExitStack() as stack:
        for name in ("_clip", "_blip", "_siglip", "aesthetic", "imagereward", "dino", "_reference"):
            module = __import__(f"rewards.{name}", fromlist=[name])
            for attribute, stand_in in stand_ins.items():
                if hasattr(module, attribute):
                    stack.enter_context(patch.object(module, attribute, stand_in))
        yield


def make(name: str, dtype: str, device: str) -> Reward:
    """The reward with its real architecture and random weights."""
    settings, architecture, preprocess, _ = REAL[name]
    kind: Any = REWARDS.config_class(name)
    if "dtype" in kind.model_fields:
        settings = settings | {"dtype": dtype}
    settings |= {key: "-" for key in ("head", "weights", "reference") if key in kind.model_fields}
    if name == "dino":
        import rewards._reference as reference

        with without_checkpoints(architecture, preprocess), patch.object(reference, "_open", _grey):
            reward = build(REWARDS, kind(**settings))
            reward.references._read[""] = _grey()
            return reward.to(device)
    with without_checkpoints(architecture, preprocess):
        return build(REWARDS, kind(**settings)).to(device)


def _grey(*_: Any) -> Tensor:
    return torch.full((1, 3, 256, 256), 0.5)


def reference_path(images: Tensor, preprocess: Preprocess) -> Tensor:
    """8 bits, PIL and transformers' processor."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    levels = images.detach().mul(255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(picture) for picture in levels]
    if isinstance(preprocess.size, tuple):
        height, width = preprocess.size
        processor: Any = SiglipImageProcessorPil(size={"height": height, "width": width})
    else:
        assert preprocess.crop is not None
        assert preprocess.size is not None
        crop = {"height": preprocess.crop[0], "width": preprocess.crop[1]}
        processor = CLIPImageProcessorPil(size={"shortest_edge": preprocess.size}, crop_size=crop)  # type: ignore[arg-type]
    return processor(pictures, return_tensors="pt")["pixel_values"].to(images.device)


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times[1:])


def measure(name: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    reward = make(name, args.dtype, args.device)
    _, _, preprocess, network = REAL[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(args.batch, 3, args.size, args.size, generator=generator).to(args.device)
    prompts = [PROMPT] * args.batch

    def forward() -> None:
        with torch.no_grad():
            reward(images, prompts)

    def backward(through: Callable[[Tensor], Tensor]) -> None:
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(through(leaf).sum(), leaf)

    once = seconds(forward, args.device, args.repeats)
    both = seconds(lambda: backward(lambda x: reward(x, prompts)), args.device, args.repeats)
    cells = [name, network, *(f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (args.batch / once, args.batch / both))]
    if preprocess is None:
        return f"| {' | '.join([*cells, '-', '-', '-'])} |"
    ours = seconds(lambda: preprocess(images), args.device, 5)
    with_gradient = seconds(lambda: backward(preprocess), args.device, 5)
    theirs = seconds(lambda: reference_path(images, preprocess), args.device, 5)
    milliseconds = [f"{1000 * x / args.batch:.1f}" for x in (ours, theirs)]
    return f"| {' | '.join([*cells, f'{100 * with_gradient / both:.1f} %', *milliseconds])} |"


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


def write(docs: Path, section: str) -> None:
    """Replaces the section "Rewards" of a page, or adds it."""
    text = docs.read_text(encoding="utf-8") if docs.is_file() else "# Performance\n"
    before, _, rest = text.partition("\n## Rewards\n")
    _, heading, after = rest.partition("\n## ")
    docs.write_text(before.rstrip() + "\n\n" + section.rstrip() + "\n" + (heading + after if heading else ""), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewards", nargs="*", default=list(REAL), metavar="REWARD", help=", ".join(REAL))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--docs", type=Path)
    args = parser.parse_args()
    if wrong := [name for name in args.rewards if name not in REAL]:
        parser.error(f"{', '.join(wrong)}: not measured here. Choose from {', '.join(REAL)}.")
    clock = "CPU time of the process" if args.device == "cpu" else "wall time"
    command = " ".join(["python scripts/bench/reward_speed.py", *sys.argv[1:]])
    lines = [
        "## Rewards",
        "",
        f"`{command}` on {hardware(args.device)}; torch {torch.__version__}, {args.dtype}, batch {args.batch} of "
        f"{args.size}-pixel images, random weights; {clock}, median of {args.repeats}. The share is that of our "
        "preprocessing, forward and backward, in a step with gradient; the reference path (8 bits, PIL, processor) has "
        "none.",
        "",
        "| reward | network | forward, images/s | forward + backward | preprocessing's share | ours, ms | PIL, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in args.rewards:
        lines.append(measure(name, args))
        print(lines[-1], flush=True)
        if args.docs:
            write(args.docs, "\n".join(lines))


if __name__ == "__main__":
    main()

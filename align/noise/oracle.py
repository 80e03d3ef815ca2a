"""Who puts images in an order, the best first: a recipe's rewards, or a program that looks at files.

A program is run as `COMMAND FILE FILE ...`, PNG files in a random order, with the prompt in the environment variable
ALIGN_PROMPT; it prints the places of the files, 0 the first, the best first, as many as it cares to order.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from align.errors import UserError

Oracle = Callable[[Tensor], list[int]]
"""Images (n, 3, H, W) in [0, 1] of one prompt -> places of the best ones, the best first; at least one."""
PROMPT = "ALIGN_PROMPT"


def by_rewards(rewards: Any, prompt: str) -> Oracle:
    """The order of the rewards' weighted sum; none of them needs a gradient. Equals stay in their order."""

    def order(images: Tensor) -> list[int]:
        with torch.no_grad():
            total = rewards.combine(rewards(images, [prompt] * len(images)))
        return torch.argsort(total, descending=True, stable=True).tolist()

    return order


def by_program(command: str, prompt: str, *, timeout: float) -> Oracle:
    """The order that a program prints. `timeout`: seconds for one answer."""
    words = program(command)

    def order(images: Tensor) -> list[int]:
        with tempfile.TemporaryDirectory(prefix="align-oracle-") as folder:
            files = [str(Path(folder) / f"{number}.png") for number in range(len(images))]
            for file, image in zip(files, images, strict=True):
                data = (image.float().cpu() * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
                Image.fromarray(data).save(file)
            environment = os.environ | {PROMPT: prompt}
            try:
                done = subprocess.run(
                    [*words, *files], env=environment, capture_output=True, text=True, timeout=timeout, check=False
                )
            except subprocess.TimeoutExpired:
                raise UserError(
                    f"--oracle {command}: gave no answer in {timeout:g} s. Raise objective.ranks.timeout, or make it "
                    "quicker."
                ) from None
            except OSError as error:
                raise UserError(f"--oracle {command}: cannot be run ({error.strerror}). Check the command.") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise UserError(f"--oracle {command}: ended with code {done.returncode} and said: {said}")
        return answer(done.stdout, len(images), command)

    return order


def program(command: str) -> list[str]:
    """The words of a command whose program is there."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--oracle {command}: is no command line ({error}). Close its quotes.") from None
    if not words or shutil.which(os.path.expanduser(words[0])) is None:
        raise UserError(
            f"--oracle {command}: there is no such program. Write reward, reward:NAME, or a command that takes image "
            "files and prints their order."
        )
    return [os.path.expanduser(words[0]), *words[1:]]


def answer(text: str, count: int, command: str) -> list[int]:
    """The places that a program has printed, of `count` images."""
    words = text.replace(",", " ").split()
    places = [int(word) for word in words if word.isdecimal()]
    if len(places) != len(words) or not places or len(set(places)) != len(places) or max(places) >= count:
        shown = " ".join(words[:8])[:80]
        raise UserError(
            f"--oracle {command}: printed {shown!r} for {count} images. It must print different whole numbers from 0 "
            f"to {count - 1}, the best image's first."
        )
    return places


def shuffled(oracle: Oracle, generator: torch.Generator) -> Oracle:
    """The same oracle, shown the images in a random order: whoever prefers what stands first decides nothing."""

    def order(images: Tensor) -> list[int]:
        places: Sequence[int] = torch.randperm(len(images), generator=generator).tolist()
        return [places[i] for i in oracle(images[places])]

    return order

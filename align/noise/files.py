"""What noise optimisation leaves behind: pictures that say where they come from, their noise and path, a line each."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import align
from align.config import Recipe
from align.errors import UserError
from align.figures.picture import Cell, sheet
from align.files.output import make_folder, write, write_picture
from align.noise.stamps import stamps
from align.noise.studio import Row
from rewards._numerals import counted

LINES, RECIPE = "images.jsonl", "recipe.yaml"
PATH_PICTURES = 16  # iterates shown in the grid of a path


class Outcome(BaseModel):
    """One image: a line of images.jsonl, and what its PNG says of itself."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    index: int
    prompt: str
    file: str
    """The PNG; FILE-start.png is what plain sampling gives, FILE.safetensors the noise."""
    method: str
    """reno, or best-of."""
    model: str
    seed: int
    rewards: dict[str, float]
    """label -> weight."""
    start: dict[str, float]
    """Scores of the image that plain sampling gives; total is what was maximised."""
    best: dict[str, float]
    """Scores of the image."""
    iteration: int
    """Updates or rounds (reno) before the best, or candidates (best-of) that it is the best of."""
    iterations: int
    rounds: bool = False
    """Whether those are rounds of a search by ranks."""
    path: list[float | None] = []
    """What was maximised, of each iterate (reno by gradients), the start first; null where it was no number."""
    seconds: float
    """Of the batch that the image was made in."""
    forward_equivalents: float
    """For this image: network, decoder and rewards together."""
    baselines: dict[str, dict[str, float]] = {}
    """Best-of at equal cost: {"seconds" or "forwards": scores, with the candidates drawn as `candidates`}."""
    settings: str
    """Fingerprint of the recipe, and the time that best-of was given: an image with others, or one that Ctrl-C cut
    short, is made anew."""
    version: str = align.__version__

    def told(self) -> str:
        """Which of how many it is."""
        if self.rounds:
            won = f"found in round {self.iteration} of {self.iterations}"
            return won if self.iteration else f"the start, which {counted(self.iterations, 'round')} did not better"
        if not self.path:  # nothing was climbed
            return f"the best of {counted(self.iterations, 'noise')}"
        return f"the best of {self.iterations} at {self.iteration}"


def fingerprint(recipe: Recipe) -> str:
    """Of all that an image depends on: the recipe without its output, which prompts there are, and how they are cut;
    and the files that it names."""
    tree = {k: v for k, v in recipe.dump().items() if k not in ("output", "data", "hooks", "adapter")}
    tree["train"] = {k: v for k, v in tree["train"].items() if "batch_size" not in k and k != "num_processes"}
    files = stamps([tree["model"], tree["sampling"], tree["rewards"], (tree.get("evaluate") or {}).get("rewards")])
    return hashlib.blake2b(json.dumps([tree, files], sort_keys=True).encode(), digest_size=8).hexdigest()


def stem(row: Row) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", row.prompt.lower()).strip("-")
    return f"{row.index:04d}-{words[:60].strip('-') or 'image'}"


def not_of_another(path: Path) -> None:
    """Raises UserError where a folder holds the recipe of something else, such as a training run."""
    if (path / RECIPE).is_file() and not (path / LINES).is_file() and _asks_for_more(path / RECIPE):
        raise UserError(
            f"--output {path}: the {RECIPE} there is no noise search's, such as a training run's, and one would be "
            f"written in its place. Choose another folder, such as {path / 'noise'}."
        )


def _asks_for_more(path: Path) -> bool:
    """Whether a recipe asks for anything but noise; a damaged one may be anything."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))["objective"]
        return (said["name"] if isinstance(said, dict) else said) != "reno"
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return True


class Folder:
    """The output folder: what is finished in it, and how more is added."""

    def __init__(self, path: Path, recipe: Recipe, settings: str):
        self.recipe, self.settings = recipe, settings
        not_of_another(path.expanduser())
        self.path = make_folder(path, "--output")
        write(self.path / RECIPE, recipe.yaml(), "--output")

    def finished(self) -> dict[tuple[int, str], Outcome]:
        """(index, prompt) -> the outcome, of images of these very settings whose files are there."""
        found = {}
        for outcome in read(self.path):
            if outcome.settings == self.settings and self._there(outcome):
                found[outcome.index, outcome.prompt] = outcome
        return found

    def replaced(self, rows: Sequence[Row]) -> str:
        """A line on the pictures that `rows`, to be made, will take the place of; "" for none."""
        there = sum((self.path / f"{stem(row)}.png").is_file() for row in rows)
        return f"{self.path}: {counted(there, 'picture')} of other settings made anew, in their place" if there else ""

    def _there(self, outcome: Outcome) -> bool:
        """Whether the files are those that the line speaks of, and no later ones of the same name."""
        path, said = self.path / outcome.file, outcome.model_dump_json()
        try:
            for name in (path, path.with_name(f"{path.stem}-start.png")):
                with Image.open(name) as image:
                    image.load()
                    if image.info.get("diffalign") != said:
                        return False
            with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
                return (file.metadata() or {}).get("outcome") == said
        except Exception:  # not there, or damaged: PIL and safetensors raise what the bytes happen to mean
            return False

    def add(self, outcome: Outcome, pixels: Tensor, start: Tensor, x_T: Tensor, frames: Tensor | None) -> None:
        """Images (3, H, W) bytes; x_T (C, h, w); frames (n, 3, H, W) bytes of the path. The line comes last."""
        path = self.path / outcome.file
        said = outcome.model_dump_json()
        for name, image in ((path, pixels), (path.with_name(f"{path.stem}-start.png"), start)):
            info = PngInfo()
            info.add_text("prompt", outcome.prompt)
            info.add_text("diffalign", said)
            write_picture(name, picture(image), "--output", pnginfo=info)
        described = {
            "prompt": outcome.prompt,
            "index": str(outcome.index),
            "recipe": self.recipe.yaml(),
            "outcome": said,
        }
        noise = save({"x_T": x_T.cpu().float().contiguous()}, metadata=described)
        write(path.with_suffix(".safetensors"), noise, "--output")
        if frames is not None and len(frames):
            write_path(path, outcome, frames)
        kept = [line.model_dump_json() for line in read(self.path) if line.file != outcome.file]  # those are replaced
        write(self.path / LINES, "".join(f"{line}\n" for line in [*kept, said]), "--output")


def read(folder: Path) -> list[Outcome]:
    """The lines of a folder, without a last one that a crash cut short."""
    path = folder / LINES
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return [Outcome.model_validate_json(line) for line in lines]
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise UserError(
            f"{path}: a line is no image of align reno ({said}). Remove it, or choose another folder."
        ) from None


def read_noise(path: Path) -> tuple[Tensor, dict[str, str]]:
    """(x_T (C, h, w), what was written beside it: prompt, index, recipe)."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("x_T"), dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: is no noise that align reno has written ({error}). Give one of its .safetensors."
        ) from None


def write_path(path: Path, outcome: Outcome, frames: Tensor) -> None:
    """FILE.gif, every iterate, and FILE-path.png, some of them side by side."""
    pictures = [picture(frame) for frame in frames]
    side = max(1, 256 // pictures[0].width)
    large = [image.resize((image.width * side, image.height * side), Image.Resampling.NEAREST) for image in pictures]
    write_picture(
        path.with_suffix(".gif"),
        large[0],
        "--output",
        save_all=True,
        append_images=large[1:],
        duration=[80] * (len(large) - 1) + [1500],
        loop=0,
    )
    shown = torch.linspace(0, len(frames) - 1, min(PATH_PICTURES, len(frames))).round().long().tolist()
    cells: Sequence[Any] = [(f"iteration {i}", [Cell(frames[i] / 255, "")]) for i in shown]
    write_picture(path.with_name(f"{path.stem}-path.png"), sheet(cells, columns=8), "--output")


def picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) bytes -> an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

"""A whole run of noise optimisation, or of best-of: prompts in, a folder of better pictures out.

Images are made in batches, shared out over the processes; what the folder already holds, of the very same settings, is
not made again. With `compare`, best-of at equal cost follows each batch: for the seconds that the batch took, and for
as many forward-equivalents (network, decoder and rewards together; a backward pass counts 2, a recomputed one 1).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from align.config import Recipe, load_recipe
from align.data.prompts import load_prompts
from align.errors import UserError
from align.files.output import check_file, write_picture
from align.noise.best_of import best_of
from align.noise.files import Folder, Outcome, fingerprint, not_of_another, picture, read_noise, stem
from align.noise.optimise import Optimised, optimise
from align.noise.oracle import Oracle, by_program, by_rewards, program, shuffled
from align.noise.ranks import ranked
from align.noise.studio import Row, Studio
from align.processes import gather_object

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
Method = Literal["reno", "best-of"]


@dataclass(frozen=True)
class Made:
    """One image on its way to the folder."""

    outcome: Outcome
    pixels: Tensor
    start: Tensor
    x_T: Tensor
    frames: Tensor | None


class Session:
    """One process's part in a run."""

    def __init__(self, recipe: Recipe, output: Path, say: Callable[[str], None], studio: Studio | None = None):
        if studio is None:  # before one is loaded
            not_of_another(output)
        self.recipe, self.output, self.say = recipe, output, say
        self.studio = studio or Studio(recipe)
        self.accelerator = self.studio.accelerator
        self.interrupted: str | None = None
        self.settings = ""
        self._shown = torch.Generator().manual_seed(self.studio.seed)

    def run(
        self,
        *,
        method: Method = "reno",
        count: int | None = None,
        seconds: float | None = None,
        frames: bool = False,
        compare: bool = False,
        again: bool = False,
    ) -> Iterator[Outcome]:
        """Yields each image when it is in the folder, on every process; those that were there already come first.

        count, seconds: how long best-of goes on, in candidates of each image or in seconds for each batch. compare:
        follow each batch of reno with best-of at its cost. frames: keep the path. again: make what is there anew.
        """
        self.settings = fingerprint(self.recipe) + (f", {seconds:g} s" if seconds is not None else "")
        folder = Folder(self.output, self.recipe, self.settings)
        rows = self.rows()
        made_by: dict[str, dict[tuple[int, str], Outcome]] = defaultdict(dict)
        for key, outcome in ({} if again else folder.finished()).items():
            if outcome.baselines or not compare:
                made_by[outcome.method][key] = outcome
        there = made_by[method]
        if count is not None:
            there = {k: v for k, v in there.items() if v.iterations == count}
        self.accelerator.wait_for_everyone()
        for row in rows:
            if (row.index, row.prompt) in there:
                yield there[row.index, row.prompt]
        left = [row for row in rows if (row.index, row.prompt) not in there]
        if (note := folder.replaced(left)) and not again:
            self.say(note)
        size = self.recipe.train.batch_size
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            title = f"images {start + 1}-{start + len(batch)} of {len(left)}: " if len(left) > size else ""
            makers: dict[Method, Callable[[], list[Any]]] = {
                "reno": lambda batch=batch, title=title: self._reno(batch, frames=frames, compare=compare, title=title),
                "best-of": lambda batch=batch: self._best_of(batch, count, seconds),
            }
            made = makers[method]()
            if self.accelerator.num_processes > 1:
                made = gather_object(made)
            for image in made:
                if self.accelerator.is_main_process:
                    folder.add(image.outcome, image.pixels, image.start, image.x_T, image.frames)
                yield image.outcome
            if self.interrupted:
                return

    def rows(self) -> list[Row]:
        data: Any = self.recipe.data
        prompts = load_prompts(data.prompts, count=data.count, key="data.prompts")
        seeds = getattr(self.recipe.objective, "num_seeds", 1)
        return [Row(i * seeds + k, prompt) for i, prompt in enumerate(prompts) for k in range(seeds)]

    def _reno(self, batch: Sequence[Row], *, frames: bool, compare: bool, title: str) -> list[Made]:
        studio = self.studio
        done = self._improved(batch, frames=frames, title=title)
        self.interrupted = done.interrupted
        part = studio.mine(batch)
        rows = batch[part]
        each = done.cost.forward_equivalents(studio.num_rewards) / max(1, len(rows))
        baselines: dict[str, list[dict[str, float]]] = {}
        if compare and rows and not self.interrupted:
            share = max(1, round(each / (1 + studio.num_rewards + self._network_cost())))
            extents: dict[str, Any] = {"seconds": {"seconds": done.seconds}, "forwards": {"count": share}}
            for name, extent in extents.items():
                found = best_of(studio, rows, **extent)
                scores = [studio.finished(row, x_T)[1] for row, x_T in zip(rows, found.x_T, strict=True)]
                baselines[name] = [{**said, "candidates": float(found.candidates)} for said in scores]
        return [
            self._made(
                row,
                "reno",
                x_T=done.noise.best[i],
                frames=done.noise.frames[i] if done.noise.frames is not None else None,
                iteration=int(done.noise.best_step[i]),
                iterations=done.iterations,
                rounds=getattr(self.recipe.objective, "ranks", None) is not None,
                path=[float(f"{reward:.6g}") for reward in done.noise.rewards[i]],
                seconds=done.seconds,
                forward_equivalents=each,
                baselines={name: said[place] for name, said in baselines.items()},
            )
            for place, (i, row) in enumerate(zip(range(len(batch))[part], rows, strict=True))
        ]

    def _improved(self, batch: Sequence[Row], *, frames: bool, title: str) -> Optimised:
        """By gradients, or by ranks where the recipe says so."""
        config, studio = getattr(self.recipe.objective, "ranks", None), self.studio
        if config is None:
            return optimise(studio, batch, say=self.say, frames=frames, title=title)
        if config.oracle == "reward":
            return ranked(
                studio, batch, lambda p: by_rewards(studio.rewards, p), say=self.say, frames=frames, title=title
            )
        program(config.oracle)

        def ask(prompt: str) -> Oracle:
            return shuffled(by_program(config.oracle, prompt, timeout=config.timeout), self._shown)

        return ranked(studio, batch, ask, say=self.say, frames=frames, title=title)

    def _best_of(self, batch: Sequence[Row], count: int | None, seconds: float | None) -> list[Made]:
        rows = batch[self.studio.mine(batch)]
        if not rows:
            return []
        found = best_of(self.studio, rows, count=count, seconds=seconds)
        self.say(f"best of {found.candidates}: reward {float(found.reward.mean()):.3f}, {found.seconds:.1f} s")
        each = found.cost.forward_equivalents(self.studio.num_rewards) / len(rows)
        took: dict[str, Any] = {"seconds": found.seconds, "forward_equivalents": each, "baselines": {}}
        took |= {"iteration": found.candidates, "iterations": found.candidates, "frames": None}
        return [self._made(row, "best-of", x_T=x_T, **took) for row, x_T in zip(rows, found.x_T, strict=True)]

    def _network_cost(self) -> int:
        """Network rows of one image drawn without gradient: guidance takes two a call."""
        sampling = self.recipe.sampling
        return sampling.num_rows

    def _made(self, row: Row, method: Method, *, x_T: Tensor, frames: Tensor | None, **took: Any) -> Made:
        studio = self.studio
        pixels, best = studio.finished(row, x_T)
        start, first = studio.finished(row, studio.noise([row])[0])
        outcome = Outcome(
            index=row.index,
            prompt=row.prompt,
            file=f"{stem(row)}.png",
            method=method,
            model=str(getattr(self.recipe.model, "checkpoint", self.recipe.model)),
            seed=studio.seed,
            rewards=studio.rewards.weights,
            start=first,
            best=best,
            settings=f"{self.settings}, cut short" if self.interrupted else self.settings,
            **took,
        )
        kept = None if frames is None else frames.cpu()
        return Made(outcome, pixels, start, x_T.cpu(), kept)  # of no GPU: other processes read it


def drawn_again(
    noise: Path, recipe: str | None, model: Mapping[str, str], output: Path | None, overrides: Sequence[str] = ()
) -> Path:
    """Draws the image of a stored noise: as it was, or by the sampling of `recipe` with the model of those changes."""
    path = output or noise.with_name(f"{noise.stem}-{'again' if recipe is None else 'redrawn'}.png")
    path = check_file(path, "--output", PICTURES)
    x_T, said = read_noise(noise)
    row, own = _told(noise, said)
    settings = own if recipe is None else {**load_recipe(recipe, on_disk=False).dump(), "train": own["train"]}
    loaded = load_recipe(settings, model, on_disk=False)
    studio = Studio(load_recipe(loaded, overrides, on_disk=False))
    asked = tuple(studio.model.latent_shape(studio.recipe.sampling.image_size))
    if asked != tuple(x_T.shape):
        raise UserError(
            f"{noise}: is noise of shape {tuple(x_T.shape)}, and {studio.model.source} takes {asked}. Choose a model "
            "of the same latents, or --set sampling.image_size."
        )
    pixels = studio.levels(row, x_T.to(studio.accelerator.device))
    return write_picture(path, picture(pixels), "--output")


def _told(noise: Path, said: Mapping[str, str]) -> tuple[Row, dict[str, Any]]:
    """Which image a stored noise is of, and its recipe, as the file says."""
    try:
        row, own = Row(int(said["index"]), said["prompt"]), yaml.safe_load(said["recipe"])
        if isinstance(own, dict) and "train" in own:
            return row, own
    except (KeyError, ValueError, yaml.YAMLError):
        pass
    raise UserError(f"{noise}: does not say its recipe, prompt and number. Give a .safetensors of align reno.")

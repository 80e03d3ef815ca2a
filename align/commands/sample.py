"""`align sample`: images of a run's model, or of a recipe's base model, written as PNG files."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from align import recipes
from align.config import Recipe, load_recipe
from align.data._prompt_files import names_a_source
from align.data._readable import readers, refuse
from align.errors import UserError
from align.evaluation.score_inputs import reward_configs
from align.figures.picture import to_pil
from align.files import lock
from align.files.output import make_folder, write_picture
from align.models._base import device_of
from align.noise.text import TOWER, TextSteps, Towards
from align.policy import adapter_file, soft_prompt
from align.policy.branches import NEGATIVE, Branch, Branched, opposite
from align.policy.mix import Mixer, locate
from align.registry import MODELS, REWARDS, build, resolve_embedded
from align.sampling import rollout
from rewards import Composite
from rewards._latents import Undecoded
from samplers import Rng, generator, last

BATCH = 16
STREAM = "sample"  # of the noise: another than that of training's first updates, which the adapter has seen


@dataclass(frozen=True)
class Text:
    """How prompts are optimised before they are drawn: by one of `towards` and `rewards`."""

    num_steps: int
    towards: Path | None = None
    rewards: tuple[str, ...] = ()
    tower: str | None = None
    lr: float = 1e-4

    def told(self) -> list[Any]:
        """What the images depend on."""
        return [self.num_steps, str(self.towards), *self.rewards, self.tower, self.lr] if self.num_steps else []

    def build(self, model: Any, recipe: Recipe, seed: int) -> TextSteps:
        """Raises UserError for what cannot go together."""
        if (self.towards is None) == (not self.rewards):
            raise UserError("--text-steps: by what? Give one of --towards FOLDER of pictures, and --reward NAME.")
        if self.towards is not None:
            loss: Any = Towards(model, self.towards, resolve_embedded(self.tower or TOWER))
        else:
            loss = _rewarded(model, recipe, self.rewards, seed)
        return TextSteps(model, loss, num_steps=self.num_steps, lr=self.lr)


def _rewarded(model: Any, recipe: Recipe, names: Sequence[str], seed: int) -> Any:
    """The loss of rewards, on what the first network call predicts."""
    configs = reward_configs(names, (), recipe.rewards)
    for label, config in configs.items():
        if not config.has_gradient():
            raise UserError(f"--reward {label}: has no gradient to follow. Use another, such as clip.")
    device = device_of(model.network)
    rewards = Composite({label: build(REWARDS, config) for label, config in configs.items()}).to(device)

    def loss(prompt: str, number: int, cond: Any) -> torch.Tensor:
        rng, grad = Rng(seed, [number]), replace(last(1), checkpoint=False)
        seen = rollout(recipe.sampling, model, model.denoiser(), [prompt], rng, grad=grad, num_calls=1, cond=cond)
        return -rewards.score(Undecoded(seen.x0_hat, model.codec), [prompt]).total.sum()

    return loss


@torch.no_grad()
def sample(
    source: str,
    prompts: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    num_images: int = 1,
    seed: int = 0,
    strength: float = 1.0,
    output: Path | None = None,
    recipe: str | None = None,
    text: Text | None = None,
) -> Iterator[Path]:
    """Draws `num_images` of each prompt as the recipe's sampling block says; yields each file when it is written.

    `source` is a run's folder, an adapter, or a checkpoint of a run, then with the adapter at `strength` (0 is the base
    model), or a recipe, then without. Image number i of a call starts from the noise of (seed, i): the same call gives
    the same images, before and after training alike. An image that the folder holds already is not written twice, and
    one of another call is left where it is: the new ones get the next free numbers.
    """
    adapter, loaded = _behind(source, overrides, recipe, with_adapter=strength != 0)
    wanted = [prompt for prompt in _texts(prompts) for _ in range(num_images)]
    judges = reward_configs(text.rewards, (), loaded.rewards) if text and text.num_steps else {}
    refuse("the prompts", wanted, readers({"sampling": loaded.sampling}, judges))
    used = adapter if strength != 0 else None
    folder = make_folder(output or _default(source, loaded, adapter, strength), "--output")
    tree = loaded.dump()
    digest = hashlib.blake2b(used.read_bytes(), digest_size=8).hexdigest() if used else ""
    if (negative := loaded.sampling.how.negative) is not None and negative.source is not None:
        digest += hashlib.blake2b(adapter_file.find(negative.source).read_bytes(), digest_size=8).hexdigest()
    drawn = [tree["model"], tree["sampling"], digest, strength if used else 0, seed, *(text.told() if text else ())]
    said = [_fingerprint(drawn, index, prompt) for index, prompt in enumerate(wanted)]
    with lock.alone(folder, "--output "):  # a number that is free now is taken when its image is written
        names = _names(folder, said)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = build(MODELS, loaded.model)
        tokens = used is not None and used.name == soft_prompt.FILE_NAME
        if used is not None and tokens:
            soft_prompt.SoftPrompt.load(model, used)
        denoiser = _denoiser(model, loaded, None if tokens else used, strength)
        model.to(device)
        noise = generator(seed, STREAM, 0).initial_seed()
        steps = text.build(model, loaded, noise) if text else None
        for start in range(0, len(wanted), BATCH):
            rows = wanted[start : start + BATCH]
            rng, cond = Rng(noise, range(start, start + len(rows))), steps.encode(rows, start) if steps else None
            x0 = rollout(loaded.sampling, model, denoiser, rows, rng, cond=cond).x0
            for index, pixels in enumerate(model.codec.decode(x0), start):
                info = PngInfo()
                info.add_text("prompt", wanted[index])
                info.add_text("source", f"{source}, strength {strength if used else 0:g}, seed {seed}, image {index}")
                info.add_text("diffalign", said[index])
                if steps is not None and wanted[index] in steps.moved:
                    info.add_text("text moved", f"{steps.moved[wanted[index]]:.4f} of its length")
                yield write_picture(folder / names[index], to_pil(pixels), "--output", pnginfo=info)


def _behind(
    source: str, overrides: Sequence[str], recipe: str | None, *, with_adapter: bool
) -> tuple[Path | None, Recipe]:
    """(the adapter's file, None where the base model was asked for; the recipe)."""
    path = Path(source).expanduser()
    if not with_adapter and (path / recipes.RECIPE).is_file():
        return None, load_recipe(source, overrides, on_disk=False)
    tokens = path / adapter_file.FOLDER / soft_prompt.FILE_NAME
    if tokens.is_file():
        return tokens, load_recipe(source, overrides, on_disk=False)
    if path.is_dir() or path.suffix == ".safetensors":
        file, beside = adapter_file.locate(path)  # a run without one is not drawn by its base
        if recipe is None and beside is None:
            raise UserError(f"{source}: there is no recipe.yaml beside this adapter. Give --recipe, for its model.")
        return file, _loaded(recipe, file, overrides) if recipe else load_recipe(str(beside), overrides, on_disk=False)
    try:
        found = recipes.find(source)
    except UserError:
        if recipe is None:
            raise
        file = adapter_file.find(locate(source).adapter)
        return file, _loaded(recipe, file, overrides)
    beside = found.parent / adapter_file.FOLDER / adapter_file.FILE_NAME
    return beside if beside.is_file() else None, load_recipe(source, overrides, on_disk=False)


def _denoiser(model: Any, recipe: Recipe, adapter: Path | None, strength: float) -> Any:
    """The model with its adapter, and with those that guidance has on its other branch."""
    component = next(name for name, module in model.components().items() if module is model.network)
    mixer, negative = Mixer(model.network, component), recipe.sampling.how.negative
    own = {} if adapter is None else {str(adapter): strength}
    other: dict[str, float] | None = None
    if getattr(recipe.objective, "train", "") == NEGATIVE:  # the adapter is what the base is drawn against
        wanted = negative.adapters if negative else {}
        own, other = {}, opposite({}, {NEGATIVE: strength * wanted.get(NEGATIVE, 1.0)}, str(adapter)) if own else None
    elif negative is not None:
        source = str(adapter_file.find(negative.source)) if negative.source else NEGATIVE
        other = opposite(own, negative.adapters, source)
    for source in dict.fromkeys((*own, *(other or ()))):
        mixer.add(source)
    mixer.set(own)
    denoiser = model.denoiser()
    branch = None if other is None else Branch(mixer, denoiser, other)
    return Branched(denoiser, branch, Branch(mixer, denoiser, {}))


def _loaded(recipe: str, file: Path, overrides: Sequence[str]) -> Recipe:
    """A recipe that is named for its model: a few-step student is drawn as it says itself, unless the call says it."""
    said = adapter_file.drawn_by(file)
    loaded = load_recipe(recipe, {} if said is None else {"sampling": said}, on_disk=False)
    return load_recipe(loaded, overrides, on_disk=False)


def _texts(prompts: Sequence[str]) -> list[str]:
    """The prompts; one that is plainly a file or a set stands for those in it."""
    from align.evaluation.prompts import load

    return [
        text
        for said in prompts
        for text in ([i.prompt for i in load(said, key="")] if names_a_source(said) else [said])
    ]


def _default(source: str, recipe: Recipe, adapter: Path | None, strength: float) -> Path:
    """RUN/images/strength-1 of a run, samples/NAME of a recipe, samples/RUN of a run's adapter."""
    run = Path(source).expanduser()
    if run.is_dir() and (run / recipes.RECIPE).is_file():
        return run / "images" / f"strength-{strength:g}"
    if adapter is None:
        return Path("samples") / recipes.find(source).stem
    return Path("samples") / (locate(source).name.replace(" ", "-") if run.exists() else adapter.stem)


def _fingerprint(*told: Any) -> str:
    return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def _names(folder: Path, said: Sequence[str]) -> list[str]:
    """A file's name for each image: the one that holds it already, else the next number that is free."""
    held: dict[str, str] = {}
    numbers = [-1]
    for path in sorted(folder.glob("*.png")):
        if path.stem.isdigit():
            numbers.append(int(path.stem))
            try:
                with Image.open(path) as image:
                    held.setdefault(str(image.info.get("diffalign", "")), path.name)
            except Exception:  # no picture: its number is taken all the same
                continue
    free = iter(range(max(numbers) + 1, max(numbers) + 1 + len(said)))
    return [held.get(one) or f"{next(free):04d}.png" for one in said]

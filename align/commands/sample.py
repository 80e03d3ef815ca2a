"""`align sample`: images of a run's model, or of a recipe's base model, written as PNG files."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo

from align import recipes
from align.config import load_recipe
from align.errors import UserError
from align.figures.picture import to_pil
from align.policy.lora import FILE_NAME
from align.policy.trainable import Adapter
from align.registry import MODELS, build
from align.sampling import rollout
from samplers import Rng

BATCH = 16


@torch.no_grad()
def sample(
    source: str,
    prompts: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    num_images: int = 1,
    seed: int = 0,
    strength: float = 1.0,
    output: Path = Path("samples"),
) -> Iterator[Path]:
    """Draws `num_images` of each prompt as the recipe's sampling block says; yields each file when it is written.

    `source` is a run's folder, then with its adapter at `strength` (0 is the base model), or a recipe, then without.
    The file's number is the image's global index, from which, with the seed, its noise is drawn: the same call gives
    the same images, before and after training alike.
    """
    recipe = load_recipe(source, overrides, on_disk=False)
    folder = recipes.find(source).parent / "adapter"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(MODELS, recipe.model)
    with_adapter = (folder / FILE_NAME).is_file() and strength != 0
    adapter = None
    if with_adapter:
        name = next(name for name, module in model.components().items() if module is model.network)
        config = recipe.adapter.model_copy(update={"init": str(folder)})
        adapter = Adapter(config, model.network, list(model.lora_targets), component=name, seed=0)
    model.to(device)
    wanted = [prompt for prompt in prompts for _ in range(num_images)]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made ({error.strerror}). Choose another folder.") from None
    with adapter.scaled(strength) if adapter is not None else nullcontext():
        for start in range(0, len(wanted), BATCH):
            rows = wanted[start : start + BATCH]
            rng = Rng(seed, range(start, start + len(rows)))
            x0 = rollout(recipe.sampling, model, model.denoiser(), rows, rng).x0
            for index, pixels in enumerate(model.codec.decode(x0), start):
                said = PngInfo()
                said.add_text("prompt", wanted[index])
                said.add_text("source", f"{source}, strength {strength if with_adapter else 0}, seed {seed}")
                path = output / f"{index:04d}.png"
                to_pil(pixels).save(path, pnginfo=said)
                yield path

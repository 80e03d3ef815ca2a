"""Whether another model can draw the noises that are going to be found: asked before any is, without its weights."""

from collections.abc import Sequence

from align.config import load_recipe
from align.errors import UserError
from align.models._load import CheckpointConfig, pipeline_class_name
from align.noise.recipe import recipe_of
from align.plan.networks import model_of
from align.plan.rehearsal import plain_dtypes
from align.registry import EMBEDDED


def latents_of(model: str, option: str) -> tuple[int, ...]:
    """The shape of the latents that a model draws from. A UserError, which begins with `option`, says what is not
    there, or is no model."""
    try:
        recipe = load_recipe(*recipe_of(model), on_disk=False)
        config = recipe.model
        for _, text in config.conflicts({}):
            raise UserError(text)
        assert isinstance(config, CheckpointConfig)  # each family's is
        if not config.checkpoint.startswith(EMBEDDED):
            pipeline_class_name(config)  # of one on the Hub also whether it can be reached
        return tuple(model_of(config, plain_dtypes(config.dtype)).latent_shape(recipe.sampling.image_size))
    except UserError as error:
        raise UserError(f"{option} {model}: {str(error).removeprefix(f'{model}: ')}") from None


def same_latents(model: str, other: Sequence[int], own: Sequence[int], option: str) -> None:
    """Raises a UserError where a model draws from latents of another shape than its noises have."""
    if tuple(own) != tuple(other):
        raise UserError(
            f"{option} {model}: draws from noise of shape {tuple(other)}, and what is optimised has {tuple(own)}. "
            "Choose a model of the same latents."
        )

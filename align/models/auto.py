"""The family that a checkpoint's model_index.json says it is of."""

import logging
from typing import Any, ClassVar, Literal

from align.errors import UserError
from align.models._base import DiffusionModel
from align.models._load import CheckpointConfig, pipeline_class_name
from align.models._pipeline import PipelineModel
from align.registry import MODELS

logger = logging.getLogger(__name__)


class AutoConfig(CheckpointConfig):
    """Any checkpoint in diffusers' layout, a folder or on the Hub; a family's own settings need its name."""

    asks: ClassVar[bool] = True  # its checkpoint for the family: its own name says nothing

    name: Literal["auto"] = "auto"


class Auto:
    """Finds the family and stands back: `Auto(config)` is a model of that family."""

    Config = AutoConfig

    def __new__(cls, config: AutoConfig, pipeline: Any = None) -> DiffusionModel:  # type: ignore[misc]
        found = pipeline_class_name(config) if pipeline is None else type(pipeline).__name__
        name, family = _family(config, found)
        logger.info("%s is a %s: model.name=%s", config.checkpoint, found, name)
        settings = {key: getattr(config, key) for key in CheckpointConfig.model_fields}
        return family(family.Config(**settings), pipeline)

    @staticmethod
    def family(config: AutoConfig) -> type[PipelineModel]:
        """The class of the checkpoint's family; no weights are read."""
        return _family(config, pipeline_class_name(config))[1]


def _family(config: AutoConfig, found: str) -> tuple[str, type[PipelineModel]]:
    families = _families()
    if found not in families:
        raise UserError(
            f"model.checkpoint={config.checkpoint}: no family is made for a {found}. Known: "
            f"{', '.join(sorted(families))}. Add a family in one file (docs/develop/families.md) and set model.name "
            "to it."
        )
    return families[found]


def _families() -> dict[str, tuple[str, type[PipelineModel]]]:
    """diffusers pipeline class -> (the family's name, its class)."""
    pairs = ((name, MODELS.get(name)) for name in MODELS.names())
    return {
        found: (name, family)
        for name, family in pairs
        if issubclass(family, PipelineModel)
        for found in family.pipelines
    }

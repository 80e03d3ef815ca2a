"""model.preset: settings of a recipe for a GPU of 24, 16 or 8 GB, by the size of the network that is aligned.

A preset is a word for settings that stand elsewhere: it is spelled out when a recipe is read, and the resolved recipe
names them. What a recipe's file says beside its own preset stays; a preset on the command line changes the file, and
what else stands there changes the preset. docs/models/index.md has what the recipes need with each, by their plan.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from align.errors import UserError

NAMES = ("24gb", "16gb", "8gb")
GIB = 2**30
WHOLE = {"24gb": 13.0, "16gb": 5.0, "8gb": 1.7}
"""GiB of a bfloat16 network up to which it stays as it is."""
HALVED = {"24gb": 12.0, "16gb": 8.0, "8gb": 0.0}
"""GiB up to which 8 bits a weight are few enough; beyond, NF4."""
LIMIT = {"24gb": 15.0, "16gb": 11.0, "8gb": 4.5}
"""GiB of a network in NF4 beyond which there is no preset."""
TOGETHER = 21.0
"""GiB of network and text encoders up to which a prompt is encoded beside the network on 24 GB."""
FEW = 1.0
"""Billions of parameters below which two samples go through at once on 24 GB, and the autoencoder stays as it is."""


def settings(tree: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """{dotted key: value} that the preset stands for in this recipe. Raises UserError where it cannot fit."""
    model = tree.get("model")
    checkpoint = str(model.get("checkpoint", "")) if isinstance(model, Mapping) else ""
    billions, of_text = _size(checkpoint)
    few = 2 if preset == "24gb" and billions < FEW else 1
    kept = _kept(billions, preset, checkpoint)
    network = {None: 16.0, "int8": 8.0, "nf4": 4.5}[kept] / 8 * 1e9 * billions / GIB
    beside = preset == "24gb" and network + 2e9 * of_text / GIB <= TOGETHER
    found: dict[str, Any] = {
        "model.checkpoint_blocks": True,
        "model.decode_chunk": 1,
        "train.micro_batch_size": few,
        **dict.fromkeys(_judges(tree), True),
    }
    if isinstance(tree.get("evaluate"), Mapping):
        found["evaluate.batch_size"] = 1
    if _draws(tree):
        found["data.rollout_size"] = few
    found["model.offload_text" if beside else "model.text_on_cpu"] = True
    if preset != "24gb" or billions >= FEW:
        found["model.dtype.vae"] = "bf16"
    if kept is not None:
        found["model.quantize"] = kept
    return found


def _kept(billions: float, preset: str, checkpoint: str) -> str | None:
    """How the network's weights are kept."""
    if 2e9 * billions / GIB <= WHOLE[preset]:
        return None
    if 1e9 * billions / GIB <= HALVED[preset]:
        return "int8"
    if (size := 4.5e9 / 8 * billions / GIB) > LIMIT[preset]:
        raise UserError(
            f"model.preset={preset}: {checkpoint} has {billions:g} billion parameters, {size:.1f} GiB of them in 4.5 "
            f"bits each, and an update does not fit beside these. Use a larger preset, or a smaller model."
        )
    return "nf4"


def _size(checkpoint: str) -> tuple[float, float]:
    """Billions of parameters of a published checkpoint's network and of its text encoders; of another one, a folder's,
    as if it were small."""
    from align.models._real_size import find

    known = find(checkpoint)
    return (known[1].billions, known[1].text_billions) if known else (0.9, 0.1)


def _draws(tree: Mapping[str, Any]) -> bool:
    """Whether the recipe's data are images that it draws itself, some at a time."""
    from align.registry import DATA

    data = tree.get("data")
    name = str(data.get("name")) if isinstance(data, Mapping) else str(data)
    return name in DATA.names() and "rollout_size" in DATA.config_class(name).model_fields


def _judges(tree: Mapping[str, Any]) -> Iterator[str]:
    """The keys that off-load a reward between its uses, of all learned rewards in the recipe."""
    places: dict[str, Any] = {"rewards": tree.get("rewards")}
    for label, hook in (_mapping(tree.get("hooks"))).items():
        places[f"hooks.{label}.rewards"] = _mapping(hook).get("rewards")
    places["evaluate.rewards"] = _mapping(tree.get("evaluate")).get("rewards")
    for place, rewards in places.items():
        for label, reward in _mapping(rewards).items():
            name = reward if isinstance(reward, str) else _mapping(reward).get("name", label)
            if _learned(str(name)):
                yield f"{place}.{label}.offload"


def _learned(name: str) -> bool:
    from align.registry import REWARDS

    if name not in REWARDS.names():
        return False
    config: Any = REWARDS.config_class(name)
    return config.card.size[:1].isdigit()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def spelled_out(said: Any, overrides: Any) -> None:
    """Puts the settings of model.preset into a `Source` that `overrides` were applied to, and takes the word out."""
    before = _mapping(said.tree.get("model")).get("preset")
    said.override(overrides)
    preset = _mapping(said.tree.get("model")).get("preset")
    if preset is None or preset not in NAMES:  # what is no preset is refused with the rest
        return
    found = settings(said.tree, preset)
    if preset == before:
        found = {key: value for key, value in found.items() if not _says(said.tree, key)}
    said.override(found)
    said.override(overrides)
    said.override({"model.preset": None})


def _says(tree: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True

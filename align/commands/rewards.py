"""`align rewards`: what each reward measures, its range, size, memory, licence, and whether it has a gradient."""

import re
from typing import Any

from align.registry import REWARDS, RewardConfig

COLUMNS = ("reward", "gradient", "size", "memory", "licence", "range")


def default_settings(name: str) -> Any:
    """The reward's config by default; settings without a default are left empty."""
    kind: Any = REWARDS.config_class(name)
    required = {key: "" for key, field in kind.model_fields.items() if field.is_required()}
    return kind.model_construct(**required)


def memory(config: RewardConfig) -> str:
    """What the weights take by default, from their number and precision; activations come on top (memory_gib)."""
    found = re.search(r"([\d.]+) (M|B)\b", config.card.size)
    if found is None:
        return "-"
    number = float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]]
    width = 2 if getattr(config, "dtype", "") == "bfloat16" else 4
    return f"{number * width / 2**30:.1f} GiB"


def overview() -> list[str]:
    """A line for each reward, under a line of titles."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name in REWARDS.names():
        config = default_settings(name)
        licence = "; ".join(dict.fromkeys(config.licences().values())) or "Apache-2.0"
        gradient = "yes" if config.has_gradient() else "no"
        rows.append((name, gradient, config.card.size, memory(config), licence, config.card.range))
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def described(name: str) -> list[str]:
    """All that is known of one reward."""
    config: RewardConfig = default_settings(name)
    card = config.card
    return [
        f"  measures: {card.measures}",
        f"  range:    {card.range}",
        f"  size:     {card.size}",
        f"  memory:   {memory(config)} of weights; memory_gib bounds what is computed beside them",
        f"  gradient: {'yes' if config.has_gradient() else 'no'}",
        f"  licence:  {config.licence_text()}",
        f"  hacking:  {card.hacking}",
        f"  watch:    {card.partner}",
    ]

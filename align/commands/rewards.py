"""`align rewards`: what each reward measures, its range, its size, whether it carries a gradient, and its licence."""

from typing import Any

from align.registry import REWARDS, RewardConfig

COLUMNS = ("reward", "gradient", "size", "licence", "range")


def default_settings(name: str) -> Any:
    """The reward's config by default; settings without a default are left empty."""
    kind: Any = REWARDS.config_class(name)
    required = {key: "" for key, field in kind.model_fields.items() if field.is_required()}
    return kind.model_construct(**required)


def overview() -> list[str]:
    """A line for each reward, under a line of titles."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name in REWARDS.names():
        config = default_settings(name)
        licence = "; ".join(dict.fromkeys(config.licences().values())) or "Apache-2.0"
        rows.append((name, "yes" if config.has_gradient() else "no", config.card.size, licence, config.card.range))
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
        f"  gradient: {'yes' if config.has_gradient() else 'no'}",
        f"  licence:  {config.licence_text()}",
        f"  hacking:  {card.hacking}",
        f"  watch:    {card.partner}",
    ]

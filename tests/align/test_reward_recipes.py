"""Every recipe that trains an adapter on rewards watches one that it is not trained on."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {
    path: recipe
    for path in sorted((ROOT / "recipes").glob("*/*.yaml"))
    if "adapter" in (recipe := yaml.safe_load(path.read_text(encoding="utf-8"))) and recipe.get("rewards")
}


def networks(rewards: dict | None) -> set[tuple[str, str]]:
    """What scores: (reward, its checkpoint where one is named), whatever the label, the form and the weight."""
    found = set()
    for label, settings in (rewards or {}).items():
        settings = {"name": settings} if isinstance(settings, str) else settings or {}
        found.add((settings.get("name", label), settings.get("model", "")))
    return found


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_another_reward_is_watched(path):
    recipe = TRAINED[path]
    panel = (recipe.get("hooks") or {}).get("panel") or {}
    watched = networks(panel.get("rewards")) | networks(recipe.get("evaluate", {}).get("rewards"))
    assert watched - networks(recipe["rewards"])


def test_there_are_such_recipes():
    assert len(TRAINED) > 10

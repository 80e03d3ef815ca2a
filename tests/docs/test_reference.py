"""docs/reference/ is what the code says, and the code says something of every setting."""

import sys

import pytest
from doc_pages import ROOT, text

sys.path.insert(0, str(ROOT))

from align.config import Recipe
from align.registry import DATA, HOOKS, MODELS, OBJECTIVES, REWARDS, ComponentConfig
from scripts.handbook.pages import pages
from scripts.handbook.settings import blocks

WRITTEN = pages()


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_page_is_what_the_code_says(name):
    assert text(f"docs/reference/{name}") == WRITTEN[name], "run: python scripts/reference.py"


def test_nothing_else_is_there():
    assert {path.name for path in (ROOT / "docs" / "reference").iterdir()} == set(WRITTEN)


def configs():
    """Every config that a recipe can hold, and the blocks inside them."""
    found = [Recipe]
    for registry in (MODELS, OBJECTIVES, REWARDS, DATA, HOOKS):
        found += [registry.config_class(name) for name in registry.names()]
    for config in found:
        for field in config.model_fields.values():
            found += [block for block in blocks(field.annotation) if block not in found]
    return [config for config in found if issubclass(config, ComponentConfig)]


def test_every_setting_has_its_sentence():
    silent = [
        f"{config.__name__}.{name}"
        for config in configs()
        for name, field in config.model_fields.items()
        if name != "name" and not field.description
    ]
    assert not silent, "a text below the field, as the others have: it is what the reference shows"


def test_every_block_and_the_hook_that_is_off_stand_there():
    for block in ("sampling", "adapter", "optim", "train", "evaluate", "combine"):
        assert f"## {block}\n" in WRITTEN["recipe.md"]
    assert "hooks.guard=false" in WRITTEN["hooks.md"] and "`schedule`" in WRITTEN["recipe.md"]

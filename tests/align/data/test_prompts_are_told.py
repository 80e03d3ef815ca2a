"""What holds for every source of batches: a report must know what was trained on."""

import pytest

from align.registry import DATA

OF_PROMPTS = [name for name in DATA.names() if "prompts" in DATA.get(name).Config.model_fields]


@pytest.mark.parametrize("name", OF_PROMPTS)
def test_a_source_of_prompts_tells_them(name):
    """Or a report on the prompts of the training would call them held out (align/data/_base.py)."""
    assert callable(getattr(DATA.get(name), "all_prompts", None))


def test_there_are_such():
    assert {"prompts", "groups", "rollouts", "online_pairs"} <= set(OF_PROMPTS)

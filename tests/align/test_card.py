"""The adapter's card: metadata that parses, the recommended strength in the code, every score."""

import torch
import yaml

from align import card
from align.config import load_recipe
from align.statistics import compare
from align.summary import Summary


def summary(**changes) -> Summary:
    told = {
        "method": "draft", "model": "sd base", "seed": 0, "num_processes": 1, "num_updates": 60, "stopped": None,
        "chosen_update": 40, "report_prompts": "shapes:report", "trained_on": ["pick"], "seconds": 1.0,
        "seconds_per_update": 0.2, "network_calls": 1, "forward_equivalents": 3, "peak_rss_mib": 5.0,
        "peak_gpu_mib": None, "hardware": "a machine", "versions": {},
        "scores": {n: compare(torch.zeros(4), torch.full((4,), gain)) for n, gain in (("pick", 1.0), ("gold", 0.5))},
        "findings": {"guard": {"recommended_strength": 0.75, "sweep": [{"strength": 0.75, "score": 0.31}]}},
    }  # fmt: skip
    return Summary(**{**told, **changes})


def test_the_card_says_how_to_use_the_adapter_and_what_it_reached(tmp_path):
    recipe = load_recipe("draft/shapes", {"adapter.rank": 5})
    text = card.write(tmp_path, recipe, summary(stopped="the guard: enough")).read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["base_model"] == "embedded:shapes-sd"
    assert 'set_adapters("align", 0.75)' in body and "rank 5" in body and "update 40" in body
    assert "Ended early: the guard: enough." in body
    assert "| pick | yes | 0.0000 | 1.0000 |" in body and "| gold | no | 0.0000 | 0.5000 |" in body
    assert "Recommended strength: 0.75" in body and "0.75: +0.310" in body


def test_without_a_guard_the_strength_is_one():
    text = card.text(load_recipe("draft/shapes"), summary(findings={}, scores={}))
    assert 'set_adapters("align", 1)' in text and "Recommended" not in text and "| score |" not in text

"""Taste in closed form, the same from a scene and from its picture; preferences with Bradley-Terry noise."""

import numpy as np
import pytest
import torch

from align.shapes.captions import SKILLS, requirements
from align.shapes.compose import compose
from align.shapes.judge import read
from align.shapes.scene import Object, Scene, render_batch
from align.shapes.taste import WEIGHTS, gold, prefer, taste, taste_terms


def test_each_term_in_closed_form():
    one = Scene((Object("circle", "red", 16, 21, 4, saturation=0.7),), light=0.05)
    assert taste_terms(one) == pytest.approx({"saturated": 0.5, "even": 0.75, "centred": 0.5, "apart": 1.0})
    assert taste(one) == pytest.approx(0.4 * 0.5 + 0.3 * 0.75 + 0.2 * 0.5 + 0.1)
    two = Scene((Object("square", "red", 10, 16, 4), Object("square", "blue", 22, 16, 4)))
    terms = taste_terms(two)
    assert terms["apart"] == pytest.approx((12 - 8 * 0.8862) / 8, abs=1e-3)
    assert (terms["saturated"], terms["even"], terms["centred"]) == (1.0, 1.0, 1.0)
    assert taste_terms(Scene(())) == {"saturated": 0.0, "even": 1.0, "centred": 0.0, "apart": 0.0}
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_taste_is_read_from_pixels_as_from_the_scene():
    rng = np.random.default_rng(0)
    every = [r for s in SKILLS for r in requirements(s)]
    scenes = [compose(every[rng.integers(len(every))], rng) for _ in range(200)]
    read_off = [taste(r) for r in read(render_batch(scenes))]
    assert np.abs(np.array(read_off) - [taste(s) for s in scenes]).max() < 0.03


def test_gold_is_graded_judge_plus_taste():
    scene = Scene((Object("circle", "red", 16, 16, 4),))
    value = gold(render_batch([scene, scene]), ["a red circle", "a blue circle"])
    assert value.tolist() == pytest.approx([2.0, 1 + 2 / 3], abs=0.02)


def test_preferences_follow_bradley_terry():
    rng = np.random.default_rng(0)
    n = 40_000
    a, b = torch.full((n,), 1.30, dtype=torch.float64), torch.full((n,), 1.15, dtype=torch.float64)
    share = prefer(a, b, rng, temperature=0.15).double().mean().item()
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=0.01)
    assert prefer(a, b, rng, temperature=0).all() and not prefer(b, a, rng, temperature=0).any()

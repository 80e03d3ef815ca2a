"""The grammar both ways, the three prompt sets, and pictures that are what their scenes say."""

import itertools
import math

import numpy as np
import pytest

from align.shapes.captions import SKILLS, alterations, describe, parse, requirements, say
from align.shapes.compose import GAP, any_scene, compose
from align.shapes.judge import judge
from align.shapes.prompts import SPLITS, combinations, prompts
from align.shapes.scene import COLOURS, SHAPES, Object, Scene, colour_of, coverage, gap, render, render_batch


@pytest.mark.parametrize("skill", SKILLS)
def test_say_and_parse_are_inverse(skill):
    for r in requirements(skill):
        assert parse(say(r)) == r
        assert r.skill == skill


def test_an_alteration_changes_the_meaning_within_the_skill():
    for skill in SKILLS:
        for r in itertools.islice(requirements(skill), 0, None, 7):
            options = list(alterations(r))
            assert options and all(o.key != r.key and o.skill == r.skill for o in options)


def test_the_same_meaning_in_another_order_has_the_same_key():
    assert parse("a circle left of a red star").key == parse("a red star right of a circle").key
    assert parse("a red star and a circle").key == parse("a circle and a red star").key
    assert parse("a circle left of a star").key != parse("a star left of a circle").key


def test_prompt_sets_are_disjoint_in_combinations_and_cover_the_grammar():
    keys = {s: {parse(c).key for c in prompts(s)} for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not keys[a] & keys[b]
    assert set.union(*keys.values()) == {r.key for s in SKILLS for r in requirements(s)}
    assert all(combinations(split, skill) for split in SPLITS for skill in SKILLS)


def test_prompts_hold_equal_shares_and_depend_on_the_seed_alone():
    drawn = prompts("report", 1024, seed=3)
    counts = [sum(parse(c).skill == s for c in drawn) for s in SKILLS]
    assert max(counts) - min(counts) <= 1 and len(drawn) == 1024
    assert drawn == prompts("report", 1024, seed=3) != prompts("report", 1024, seed=4)
    with pytest.raises(ValueError, match=r"'test' is unknown\. Choose one of train, select, report"):
        prompts("test")


def test_describe_is_true_of_every_scene_it_can_describe():
    rng = np.random.default_rng(0)
    scenes = [any_scene(rng, most=2) for _ in range(60)]
    captions = [describe(s) for s in scenes]
    assert all(v.strict for v in judge(render_batch(scenes), captions))
    with pytest.raises(ValueError, match="no caption"):
        describe(
            Scene((Object("circle", "red", 8, 8, 4), Object("star", "red", 20, 8, 4), Object("star", "blue", 9, 22, 4)))
        )


def test_composed_objects_keep_their_distance_and_stay_inside():
    rng = np.random.default_rng(1)
    for r in itertools.islice(requirements("attribution"), 0, None, 5):
        a, b = compose(r, rng).objects
        assert gap(a, b) >= GAP
        assert all(o.radius <= o.x <= 32 - o.radius and o.radius <= o.y <= 32 - o.radius for o in (a, b))


def test_a_radius_means_the_same_area_for_every_shape():
    import torch

    area = coverage(torch.tensor([16.0]), torch.tensor([16.0]), torch.tensor([6.0]))[0].sum((1, 2))
    assert area.tolist() == pytest.approx([math.pi * 36] * len(SHAPES), rel=0.02)


def test_colours_and_light_are_what_the_scene_says():
    picture = render(Scene((Object("square", "green", 16, 16, 5, saturation=0.6),), "dark", light=0.2, angle=0.0))
    assert picture[:, 16, 16].tolist() == pytest.approx(colour_of("green", 0.6).tolist())
    assert (picture[0, 2, 31] - picture[0, 2, 0]).item() == pytest.approx(0.2 * 31 / 32, abs=1e-6)
    pure = colour_of("green", 1.0)
    assert pure.tolist() == pytest.approx(COLOURS["green"]) and colour_of("green", 0.0).std() < 1e-7

"""The judge is right on exact pictures, says no to altered captions, and sees what a change of the scene changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.shapes.captions import SKILLS, alterations, parse, requirements, say
from align.shapes.compose import compose
from align.shapes.judge import judge, judge_reading, read
from align.shapes.scene import COLOURS, Object, Scene, render, render_batch


def scenes_of(skill: str, count: int, seed: int = 0):
    rng = np.random.default_rng([seed, len(skill)])
    every = list(requirements(skill))
    wanted = [every[rng.integers(len(every))] for _ in range(count)]
    return wanted, [compose(r, rng) for r in wanted]


@pytest.mark.parametrize("skill", SKILLS)
def test_judge_is_right_on_renderings_and_refuses_altered_captions(skill):
    wanted, scenes = scenes_of(skill, 200)
    readings = read(render_batch(scenes))
    assert all(judge_reading(r, w).strict for r, w in zip(readings, wanted, strict=True))
    for reading, w in zip(readings, wanted, strict=True):
        for other in alterations(w):
            assert not judge_reading(reading, other).strict, (say(w), say(other))


def test_reading_recovers_the_scene():
    _, scenes = scenes_of("attribution", 100)
    for scene, reading in zip(scenes, read(render_batch(scenes)), strict=True):
        seen = sorted(reading.objects, key=lambda o: (o.x, o.y))
        for o, s in zip(sorted(scene.objects, key=lambda o: (o.x, o.y)), seen, strict=True):
            assert (s.shape, s.colour, s.size) == (o.shape, o.colour, o.size)
            assert abs(s.x - o.x) < 0.3 and abs(s.y - o.y) < 0.3 and abs(s.radius - o.radius) < 0.25
            assert abs(s.saturation - o.saturation) < 0.05
        assert abs(reading.light - scene.light) < 0.02


def test_mirroring_flips_left_and_right_only():
    flipped = {"left of": "right of", "right of": "left of"}
    wanted, scenes = scenes_of("position", 120)
    for w, scene, reading in zip(wanted, scenes, read(render_batch([s.mirrored() for s in scenes])), strict=True):
        expected = replace(w, relation=flipped.get(w.relation, w.relation))
        assert judge_reading(reading, expected).strict
        before = judge_reading(read(render(scene)[None])[0], w)
        after = judge_reading(reading, w)
        changed = {a for (a, x), (_, y) in zip(before.checks, after.checks, strict=True) if x != y}
        assert changed == ({"position"} if w.relation in flipped else set())


def test_recolouring_changes_only_colour_verdicts():
    wanted, scenes = scenes_of("attribution", 120)
    cycle = dict(zip(COLOURS, [*list(COLOURS)[1:], next(iter(COLOURS))], strict=True))
    for w, scene in zip(wanted, scenes, strict=True):
        first, *rest = scene.objects
        painted = replace(scene, objects=(replace(first, colour=cycle[first.colour]), *rest))
        verdict = judge_reading(read(render(painted)[None])[0], w)
        assert not verdict.strict
        assert all(what.startswith("colour") for what, ok in verdict.checks if not ok)


def test_verdicts_of_missing_extra_and_wrong_objects():
    red, blue = Object("circle", "red", 8, 16, 4), Object("square", "blue", 24, 16, 4)
    picture = render_batch(
        [Scene((red, blue)), Scene((red,)), Scene(()), Scene((red, blue, Object("star", "red", 16, 27, 4)))]
    )
    both = judge(picture, ["a red circle and a blue square"] * 4)
    assert [v.strict for v in both] == [True, False, False, False]
    assert [v.graded for v in both] == [1.0, 0.4, 0.0, 0.8]
    swapped = judge(picture[:1], ["a blue circle and a red square"])[0]
    assert dict(swapped.checks)["number"] and swapped.graded == pytest.approx(0.6)
    assert judge(picture[:1], ["a circle left of a square"])[0].strict
    assert not judge(picture[:1], ["a circle above a square"])[0].strict


def test_judge_survives_noise_and_is_deterministic():
    wanted, scenes = scenes_of("counting", 100)
    noisy = render_batch(scenes) + 0.03 * torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    captions = [say(w) for w in wanted]
    verdicts = judge(noisy, captions)
    assert sum(v.strict for v in verdicts) >= 98
    assert verdicts == judge(noisy, captions)


def test_judge_asks_for_one_caption_an_image():
    with pytest.raises(ValueError, match="2 images but 1 captions"):
        judge(torch.zeros(2, 3, 32, 32), ["a circle"])
    with pytest.raises(UserError, match="'a dog' is not understood"):
        judge(torch.zeros(1, 3, 32, 32), ["a dog"])
    assert parse("A red  circle.").items[0].colour == "red"

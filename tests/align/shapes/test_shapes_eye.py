"""The eye: its checks are the judge's on known densities, its shipped network sees what the judge sees."""

import numpy as np
import pytest
import torch

from align.registry import REWARDS, build
from align.shapes.captions import SKILLS, Item, Requirement, alterations, requirements, say
from align.shapes.compose import compose
from align.shapes.eye import CHANNELS, GRID, Eye, checks, load, target
from align.shapes.judge import judge
from align.shapes.scene import Object, Scene, render_batch
from rewards._errors import RewardError


def scenes(count: int):
    rng = np.random.default_rng(11)
    every = [list(requirements(s)) for s in SKILLS]
    wanted = [every[i % 6][rng.integers(len(every[i % 6]))] for i in range(count)]
    options = [list(alterations(r)) for r in wanted]
    altered = [say(o[rng.integers(len(o))]) for o in options]
    return [compose(r, rng) for r in wanted], [say(r) for r in wanted], altered


def reward(form: str, model: str = "embedded:shapes-eye"):
    return build(REWARDS, REWARDS.look_up({"name": "eye", "form": form, "model": model}))


def test_an_object_has_mass_one_where_it_is():
    one = Object("star", "blue", 10.0, 20.0, 5.5)
    density = target([one])
    assert density.shape == (CHANNELS, GRID, GRID)
    axis = (torch.arange(GRID) + 0.5) * 2
    for channel in density[density.sum((1, 2)) > 0]:
        assert channel.sum() == pytest.approx(1)
        assert (channel.sum(0) @ axis).item() == pytest.approx(10, abs=0.1)
        assert (channel.sum(1) @ axis).item() == pytest.approx(20, abs=0.1)
    assert (density.sum((1, 2)) > 0).sum() == 3  # its colour, its size, and any


def test_known_densities_meet_their_caption_and_no_altered_one():
    drawn, captions, altered = scenes(240)
    densities = torch.stack([target(s.objects) for s in drawn])
    soft, weight, hard = checks(densities, captions)
    assert (hard | (weight == 0)).all() and ((soft * weight).sum(1) / weight.sum(1)).min() > 0.95
    soft, weight, hard = checks(densities, altered)
    assert not (hard | (weight == 0)).all(1).any() and ((soft * weight).sum(1) / weight.sum(1)).max() < 0.9


def test_two_of_a_shape_are_asked_for_together():
    wanted = [say(Requirement((Item("circle", "red"), Item("circle", "blue"))))]
    one = target([Object("circle", "red", 8, 8, 4)])[None]
    soft, weight, _ = checks(one, wanted)
    assert weight[0].tolist() == [1, 1, 1, 0, 1, 1, 0, 0]
    assert soft[0, 1].item() == pytest.approx(0.5) and soft[0, 2].item() == pytest.approx(1)
    assert soft[0, 4].item() == pytest.approx(0.5) and soft[0, 5].item() == pytest.approx(0, abs=1e-6)
    assert soft[0, 0].item() == pytest.approx(1 / 5, abs=1e-5)  # one object missing


def test_position_asks_for_both_and_for_the_right_order():
    def position(*objects: Object) -> float:
        return checks(target(objects)[None], ["a circle left of a star"])[0][0, -1].item()

    circle, star = Object("circle", "red", 8, 16, 4), Object("star", "blue", 24, 16, 4)
    assert position(circle, star) > 0.95
    assert position(Object("circle", "red", 24, 16, 4), Object("star", "blue", 8, 16, 4)) < 0.01
    assert position(Object("circle", "red", 10, 8, 4), Object("star", "blue", 16, 26, 4)) < 0.1  # above rather
    assert position(circle) < 0.01


def test_the_shipped_eye_reads_drawings_as_the_judge_does():
    drawn, captions, altered = scenes(300)
    images = render_batch(drawn)
    for words in (captions, altered):
        told = torch.tensor([float(v.strict) for v in judge(images, words)])
        assert (reward("verdict")(images, words) == told).float().mean() > 0.96
    with torch.no_grad():
        assert (reward("soft")(images, captions) > reward("soft")(images, altered)).float().mean() > 0.98
        assert (reward("log")(images, captions) > reward("log")(images, altered)).float().mean() > 0.98


def test_the_verdict_has_no_gradient_and_the_others_have():
    drawn, captions, _ = scenes(6)
    images = render_batch(drawn).requires_grad_()
    assert not reward("verdict").differentiable and not reward("verdict")(images, captions).requires_grad
    assert reward("soft")(images, captions).requires_grad


def test_other_sizes_are_refused_in_words():
    with pytest.raises(RewardError, match="reads 32x32 pixels, not 64x48"):
        reward("soft")(torch.rand(1, 3, 48, 64), ["a red circle"])


def test_saved_and_loaded_again_in_half_precision(tmp_path):
    torch.manual_seed(0)
    network = Eye(width=8).eval()
    network.save(tmp_path)
    again, x = load(tmp_path), render_batch([Scene((Object("circle", "red", 16, 16, 4),))])
    assert again.width == 8
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("model", "usual", "most"), [("eye", 0.15, 0.4), ("detector", 0.1, 0.15)])
def test_the_soft_count_is_the_number_of_objects(model, usual, most):
    """On renderings of one to four objects; the detector within 0.1."""
    drawn, _, _ = scenes(96)
    with torch.no_grad():
        counts = reward("soft", f"embedded:shapes-{model}").network(render_batch(drawn))[:, -1].sum((1, 2))
    wrong = (counts - torch.tensor([float(len(one.objects)) for one in drawn])).abs()
    assert float(wrong.quantile(0.95)) < usual and float(wrong.max()) < most


def test_its_gradient_moves_what_is_drawn_to_where_the_caption_wants_it():
    """Through the rendering: a star above a circle ends at its left, and the judge agrees."""
    from scripts.figures.soft_places import CAPTION, ascended

    seen, places, scores = ascended(60)
    assert not judge(seen[0][None], [CAPTION])[0].strict and judge(seen[-1][None], [CAPTION])[0].strict
    assert float(places[0, 0]) < float(places[1, 0]) - 7 and scores[-1] > scores[0] + 0.1

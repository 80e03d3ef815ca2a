"""Images for the panel, the pictures and the report: their seeds, their cut into batches, their uncounted cost."""

import json

import pytest
import torch
from accelerate import Accelerator
from align_toys import randomise

from align.figures.statistics import compare
from align.models.sd import SDConfig, StableDiffusion
from align.policy.lora import AdapterConfig
from align.policy.painter import Painter
from align.policy.roles import Policy
from align.policy.trainable import Adapter
from align.sampling import SamplingConfig
from align.training.evaluate import EvaluateConfig, asked, before_after, evaluate
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig

PROMPTS = ["a red star", "two cats", "x", "a red star"]


@pytest.fixture(scope="module")
def painter(tiny_sd_factory):
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), seed=0)
    randomise(adapter, scale=0.1)
    sampling = SamplingConfig(num_steps=3, guidance_scale=2.0)
    return Painter(Policy(model, adapter), sampling, Accelerator(cpu=True), seed=3)


@pytest.fixture(scope="module")
def judges():
    return Composite({"brightness": Brightness(BrightnessConfig())})


@pytest.mark.parametrize(("size", "together"), [((32, 32), 64), ((512, 512), 16), ((1024, 1024), 4), ((4096, 2048), 1)])
def test_large_images_are_drawn_fewer_at_once(painter, size, together):
    sampling = painter.sampling.model_copy(update={"image_size": size})
    assert Painter(painter.policy, sampling, painter.accelerator, seed=3).batch_size == together


def test_no_call_of_the_network_or_decoder_has_more_images_than_that(painter, monkeypatch):
    few = Painter(painter.policy, painter.sampling, painter.accelerator, seed=3, batch_size=2)
    model, rows = painter.policy.model, []
    monkeypatch.setattr(
        model, "predict", lambda n, x, *rest, whole=model.predict: rows.append(len(x)) or whole(n, x, *rest)
    )
    found = few.images("train", PROMPTS, range(4), "report")
    assert set(rows) == {4}, "two images, guided"
    torch.testing.assert_close(found, painter.images("train", PROMPTS, range(4), "report"), rtol=0, atol=1.01 / 255)


def test_an_image_depends_on_its_own_seed_stream_and_prompt(painter):
    whole = painter.images("train", PROMPTS, range(4), "report")
    again = painter.images("train", PROMPTS[1:3], range(1, 3), "report")
    torch.testing.assert_close(again, whole[1:3], rtol=0, atol=1.01 / 255)  # a rounding may fall the other way
    assert (again == whole[1:3]).float().mean() > 0.999
    assert not torch.equal(whole[0], whole[3])  # one prompt, two seeds
    assert not torch.equal(painter.images("train", PROMPTS[:1], [0], "panel")[0], whole[0])
    assert torch.equal((whole * 255).round() / 255, whole) and whole.min() >= 0 and whole.max() <= 1


def test_scores_come_in_the_order_of_the_prompts_whatever_the_batch(painter, judges):
    found = {}
    for size in (3, 64):
        painter.batch_size = size
        found[size] = painter.score("train", PROMPTS, judges, stream="report", num_images=3)
    scores, images = found[3]
    assert scores["brightness"].shape == (4,) and images.shape == (3, 3, 32, 32)
    torch.testing.assert_close(scores["brightness"], found[64][0]["brightness"], rtol=1e-5, atol=0)
    torch.testing.assert_close(images, found[64][1], rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(judges(images, PROMPTS[:3])["brightness"], scores["brightness"][:3])


def test_painting_is_not_training(painter, judges):
    before = painter.policy.calls.state_dict()
    painter.score("train", PROMPTS[:1], judges, stream="report")
    assert painter.policy.calls.state_dict() == before == {"forward": 0, "recompute": 0, "backward": 0}


def test_before_is_the_base_and_after_the_trained_model(painter, judges, tmp_path):
    config = EvaluateConfig(prompts=PROMPTS, num_prompts=4, num_pictures=2)
    polls = []
    scores = evaluate(config, painter, judges, tmp_path, poll=lambda: polls.append(1))
    for role, mean in (("reference", scores["brightness"].before.mean), ("train", scores["brightness"].after.mean)):
        images = painter.images(role, PROMPTS, range(4), "report")
        assert mean == pytest.approx(float(judges(images, PROMPTS)["brightness"].mean()), rel=1e-5)
    assert scores["brightness"].difference.mean != 0
    assert len(polls) == 2 and (tmp_path / "before_after.png").is_file()


def test_report_prompts_that_repeat_are_one_prompt(painter, judges, tmp_path):
    repeated = ["a red star", "A  RED star", "two cats", "x", "a sun", "a red star", "two cats"]
    config = EvaluateConfig(prompts=repeated, num_prompts=99, num_pictures=1)
    found = evaluate(config, painter, judges, tmp_path, poll=lambda: None)["brightness"]
    assert (found.num_prompts, found.num_distinct, found.asked(), asked(config)) == (7, 4, *["7 images of 4"] * 2)
    scores = json.loads((tmp_path / "report" / "scores.json").read_text())["scores"]
    before, after = (torch.tensor(scores[when]["brightness"]).double() for when in ("before", "after"))
    wanted = compare(before, after, [0, 0, 1, 2, 3, 0, 1])
    assert found.difference.model_dump() == pytest.approx(wanted.difference.model_dump(), rel=1e-4)
    assert found.p == pytest.approx(wanted.p, rel=1e-3)


def colours(image):
    return {colour for _, colour in image.getcolors(1 << 20)}


def test_the_sheet_shows_gains_green_and_losses_red():
    from align.figures.picture import FAILED, PASSED

    grey = torch.full((1, 3, 8, 8), 0.5)

    def sheet(before, after):
        return colours(
            before_after("judge", ["a prompt"], (torch.tensor([before]), grey), (torch.tensor([after]), grey))
        )

    assert {PASSED, FAILED} <= sheet(0.0, 1.0)  # no, then yes
    assert PASSED in (won := sheet(0.2, 0.3)) and FAILED not in won
    assert FAILED in (lost := sheet(0.3, 0.2)) and PASSED not in lost
    assert not {PASSED, FAILED} & sheet(0.3, 0.3)


def test_numbers_that_read_alike_have_neither_risen_nor_fallen(monkeypatch):
    framed = []
    monkeypatch.setattr("align.training.evaluate.sheet", lambda groups, columns: framed.extend(groups))
    grey = torch.full((3, 3, 32, 32), 0.5)
    scores = torch.tensor([0.4, 0.7, 0.2]), torch.tensor([0.4002, 0.8, 0.1])
    before_after("eye", ["a", "b", "c"], (scores[0], grey), (scores[1], grey))
    assert [cells[1].passed for _, cells in framed] == [None, True, False]

"""The stages: a draw depends on its key alone, the flow model is the stock one, captions are what they say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
from align.shapes import embedded
from align.shapes.captions import parse
from align.shapes.judge import judge
from align.shapes.scene import REACH, SIZE, render_batch
from scripts.pretrain import common, export, flow, flow_web, pick, pool, sd, text, web


def test_careless_scenes_stay_in_the_picture_to_their_tips():
    """A star reaches half as far again as its radius says."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        scene = web.careless(common.draw(1, int(rng.integers(1000)))[1][0], rng)
        for o in scene.objects:
            reach = REACH[o.shape] * o.radius - 1e-6
            assert reach <= min(o.x, o.y) and max(o.x, o.y) <= SIZE - reach, o


def test_draw_depends_on_its_key_alone():
    assert common.draw(5, 1, 2) == common.draw(5, 1, 2)
    assert common.draw(5, 1, 2) != common.draw(5, 1, 3)
    assert sum(common.MIX.values()) == pytest.approx(1)


def test_a_skill_can_be_asked_for_more_often():
    asked = [r.skill for r in common.draw(3000, 1, often="two")[0]]
    shares = {skill: asked.count(skill) / 3000 for skill in common.MIX}
    wanted = {skill: 2 / 3 * share + (skill == "two") / 3 for skill, share in common.MIX.items()}
    assert shares == pytest.approx(wanted, abs=0.035)  # four standard errors of a half


def test_figures_of_the_other_stages_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "WORK", tmp_path)
    common.record("sd", {"steps": 1})
    common.record("flow", {"steps": 2})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"sd": {"steps": 1}, "flow": {"steps": 2}}


def test_the_flow_model_sees_the_clean_times_more_often():
    even, shift = torch.arange(4000) / 4000, flow.NOISY
    t = flow.times(4000, common.generator(0))  # shifted by s: the share below t is t / (s + (1 - s) t)
    torch.testing.assert_close(
        (t < even[:, None]).float().mean(1), even / (shift + (1 - shift) * even), atol=1e-3, rtol=0
    )
    assert (t < 0.5).float().mean() > 0.5


def test_a_deeper_flow_transformer_says_the_same_at_first_and_learns_in_every_layer():
    torch.manual_seed(0)
    shallow = flow.build(3)
    for p in shallow.parameters():
        torch.nn.init.normal_(p, std=0.1)
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 256),
        "pooled_projections": torch.randn(2, 256),
        "timestep": torch.tensor([100.0, 700.0]),
    }
    deep = flow.deeper(shallow, 5)
    assert len(deep.transformer_blocks) == deep.config["num_layers"] == 5
    out = deep(**given).sample
    torch.testing.assert_close(out, shallow(**given).sample)
    out.square().mean().backward()
    assert all(block.norm1.linear.weight.grad.abs().max() > 0 for block in deep.transformer_blocks)
    for name, p in deep.transformer_blocks[1].attn.named_parameters():  # where the layer before looks
        assert all(torch.equal(deep.transformer_blocks[k].attn.get_parameter(name), p) for k in (2, 3))
    for name in ("norm1.linear.weight", "norm1_context.linear.weight"):  # and how it shifts and scales what it looks at
        shown = [block.get_parameter(name)[: 2 * 128] for block in list(deep.transformer_blocks)[1:4]]
        assert torch.equal(shown[0], shown[1]) and torch.equal(shown[0], shown[2])
    assert flow.deeper(deep, 5) is deep


def test_a_layer_that_looks_where_another_does_adds_nothing_by_it_and_keeps_the_rest():
    layers = flow.build(3).transformer_blocks
    for p in layers.parameters():
        torch.nn.init.normal_(p)
    before = layers[1].norm1.linear.weight.clone().chunk(6)
    flow.attends_as(layers[1], layers[0])
    after, other = layers[1].norm1.linear.weight.chunk(6), layers[0].norm1.linear.weight.chunk(6)
    assert torch.equal(after[0], other[0]) and torch.equal(after[1], other[1]) and after[2].eq(0).all()
    assert all(torch.equal(*pair) for pair in zip(after[3:], before[3:], strict=True))


def test_the_flow_model_is_given_what_the_stock_pipeline_makes_of_a_caption(monkeypatch):
    folder = embedded.resolve("embedded:shapes-flow")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).to(torch.float32)
    monkeypatch.setattr(text, "load", lambda: pipe.tokenizer)
    captions = ["a red circle left of a star", "three squares"]
    ids = pipe.tokenizer(captions, padding="max_length", max_length=text.LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        states, pooled, told = flow.encode(pipe.text_encoder, ids)
        wanted, _, wanted_pooled, _ = pipe.encode_prompt(
            captions, captions, captions, do_classifier_free_guidance=False, max_sequence_length=1
        )
    torch.testing.assert_close(states, wanted)
    torch.testing.assert_close(pooled, wanted_pooled)
    assert told.pooler_output.shape == (2, 128)


def test_the_flow_model_draws_the_same_where_one_zero_token_stands_for_all():
    folder = embedded.resolve("embedded:shapes-flow")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).to(torch.float32)
    asked = {"prompt": ["a star", "a red circle left of a square"], "num_inference_steps": 3, "guidance_scale": 2.0}

    def drawn(**options) -> torch.Tensor:
        return pipe(**asked, output_type="latent", generator=common.generator(0), **options).images

    with torch.no_grad():
        stock = drawn()
        torch.testing.assert_close(flow.ready(pipe) and drawn(**flow.FAST), stock, atol=1e-4, rtol=1e-4)
        assert (drawn(max_sequence_length=1) - stock).abs().max() > 1e-2  # the one counts for one
        processors = pipe.transformer.attn_processors
        assert flow.ready(pipe).transformer.attn_processors == processors


def test_what_was_made_elsewhere_keeps_its_row_among_the_checkpoints(tmp_path, monkeypatch):
    for name in ("WORK", "CHECKPOINTS"):
        monkeypatch.setattr(export, name, tmp_path)
    (tmp_path / "figures.json").write_text(json.dumps({"sd": {"steps": 1}, "flow": {"steps": 2}}))
    (tmp_path / "README.md").write_text(export.readme())
    (tmp_path / "figures.json").write_text(json.dumps({"flow": {"steps": 3}, "flow_web": {"steps": 4}}))
    rows = [line for line in export.readme().splitlines() if "pretrain_shapes.py " in line and line.startswith("|")]
    assert [row.split("`")[1].split()[-1] for row in rows] == ["sd", "flow", "flow_web"]
    assert [json.loads(row.split("`")[3])["steps"] for row in rows] == [1, 3, 4]


def test_naming_weighs_the_cells_of_objects_again():
    logits, labels = torch.zeros(1, 64, 12), torch.zeros(1, 64, 2, dtype=torch.long)
    labels[0, 0] = torch.tensor([2, 3])
    logits[0, :, [0, 5]] = 10.0  # nothing, everywhere: right but for one cell, which misses by 10 twice
    torch.testing.assert_close(sd.named(logits, labels), torch.tensor(20 / 64 + 20), atol=1e-2, rtol=0)


def test_votes_of_a_clear_preference_are_learnt_and_of_none_are_not():
    rng, scores = np.random.default_rng(0), torch.zeros(4000, requires_grad=True)
    clear = pick.choice(scores, torch.zeros(4000), torch.full((4000,), 3.0), rng)
    (gradient,) = torch.autograd.grad(clear, scores)
    torch.testing.assert_close(gradient.sum(), torch.tensor(-0.5), atol=1e-3, rtol=0)
    even = pick.choice(scores, torch.zeros(4000), torch.zeros(4000), rng)
    (gradient,) = torch.autograd.grad(even, scores)
    assert abs(gradient.sum()) < 0.01  # four standard errors are 0.011


def test_what_is_mirrored_in_words():
    assert pick.mirrored("a red star left of a circle") == "a red star right of a circle"
    assert pick.mirrored("two left") == "two left" and pick.mirrored("a star above a circle") == "a star above a circle"


def test_who_stands_where_follows_from_the_noun_and_the_relation():
    def sides(caption: str) -> list[int]:
        return text.facts(parse(caption))[9:]  # shape and colour left, right, above, below; 0: nothing is said

    one = sides("a red circle left of a square")
    assert one == sides("a square right of a red circle") == [1, 1, 2, 0, 0, 0, 0, 0]
    assert sides("a star above a blue circle") == [0, 0, 0, 0, 4, 0, 1, 5]
    assert not any(sides("a red circle and a blue square"))
    assert len(text.facts(parse("a star"))) == len(text.CLASSES)


def test_nouns_and_the_last_four_tokens_name_what_they_stand_for(monkeypatch):
    folder = Path(common.CHECKPOINTS) / "shapes-sd" / "tokenizer"
    monkeypatch.setattr(text, "load", lambda: CLIPTokenizer.from_pretrained(folder))
    caption = "a red circle above a square"
    ids = text.load()(caption, padding="max_length", max_length=text.LENGTH, return_tensors="pt").input_ids[0]
    told = text.things(parse(caption), ids)
    assert told[3].tolist() == [1, 1] and told[6].tolist() == [2, 0]
    assert told[-4:].tolist() == [[0, 0], [0, 0], [1, 1], [2, 0]]
    assert (told[[0, 1, 2, 4, 5, 7, 8, 9, 10, 11]] == -100).all()


def test_every_noise_level_pulls_alike_in_the_end():
    levels, g = sd.Levels(), common.generator(3)
    optimiser = torch.optim.Adam(levels.parameters(), 1e-2)
    for _ in range(400):
        t = torch.rand(256, generator=g) * 1000
        loss = levels(torch.exp(-2 - 3 * t / 1000), t)  # an expected loss that falls by e^3 over the levels
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wanted = -2 - 3 * torch.linspace(0, 1, levels.KNOTS)
    torch.testing.assert_close(levels.log.detach() * levels.SPEED, wanted, atol=0.1, rtol=0)


def test_noisy_times_come_more_often():
    t = sd.times(4000, common.generator(0)).float() / 1000
    even = torch.arange(4000) / 4000
    s = sd.NOISY
    share = (t < even[:, None]).float().mean(1)
    torch.testing.assert_close(share, even / (s - (s - 1) * even), atol=2e-3, rtol=0)


def test_the_pool_moves_on_with_the_updates_and_depends_on_the_step_alone(monkeypatch):
    monkeypatch.setattr(pool, "CHUNK", 4)
    monkeypatch.setattr(pool.vae, "load", lambda: torch.nn.Identity())

    def make(self, number):
        return torch.full((4, 1), float(number)), torch.full((4,), number), torch.zeros(4, 64, 2)

    monkeypatch.setattr(pool.Pool, "_make", make)
    first, late = pool.Pool(0, window=3, fresh=2), pool.Pool(0, window=3, fresh=2)
    seen = [first.batch(step, 64, common.generator(step))[1] for step in range(9)]
    assert set(seen[0].tolist()) == {0, 1, 2} and set(seen[8].tolist()) == {4, 5, 6}
    assert torch.equal(late.batch(8, 64, common.generator(8))[1], seen[8])


def test_the_webs_pictures_are_pale_and_whole_and_its_captions_often_wrong():
    captions, scenes, images = web.shown(600, 1, 2)
    objects = [o for s in scenes for o in s.objects]
    assert all(web.DULL[0] <= o.saturation <= web.DULL[1] for o in objects)
    assert all(web.UNEVEN[0] <= s.light <= web.UNEVEN[1] for s in scenes)
    assert all(o.radius - 1 <= v <= 32 - o.radius + 1 for o in objects for v in (o.x, o.y))
    exact = [v.strict for v in judge(render_batch(scenes), captions)]
    assert abs(np.mean(exact) - (1 - web.WRONG)) < 0.08  # four standard errors
    assert images.shape == (600, 3, 32, 32) and 0 <= images.min() and images.max() <= 1


def test_the_webs_stage_of_the_flow_compares_what_the_stock_pipeline_gives_its_transformer(tmp_path, monkeypatch):
    folder = embedded.resolve("embedded:shapes-flow")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).to(torch.float32)
    ids = pipe.tokenizer(["a star", "a red circle"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    x, found = torch.randn(2, 4, 8, 8, generator=common.generator(1)), {}

    class Two:
        def __init__(self, *_, **__):
            pass

        def batch(self, step, batch, g):
            return x.clone(), ids.clone(), None

    class Ended(Exception):
        pass

    def train(name, modules, loss, **_):
        found.update(modules=modules, loss=loss(0))
        raise Ended

    monkeypatch.setattr(text, "load", lambda: pipe.tokenizer)
    for name, value in {"train": train, "Pool": Two}.items():
        monkeypatch.setattr(flow_web, name, value)
    monkeypatch.setattr(flow, "load", lambda: flow.ready(pipe))
    monkeypatch.setattr(sd, "DROP", 0.0)
    with pytest.raises(Ended):
        flow_web.main(batch=2)
    found["loss"].backward()
    assert found["modules"] == {"transformer": pipe.transformer}
    assert all(p.grad is None for p in pipe.text_encoder.parameters())
    g = common.generator(0, 38, 0)
    torch.rand(2, generator=g)
    t, noise = flow.times(2, g), torch.randn(2, 4, 8, 8, generator=g)
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(
            ["a star", "a red circle"], None, None, do_classifier_free_guidance=False, max_sequence_length=256
        )
        out = pipe.transformer(torch.lerp(x, noise, t[:, None, None, None]), states, pooled, t * 1000).sample
    assert states.shape == (2, 16 + 256, 256)
    torch.testing.assert_close(found["loss"], (out - (noise - x)).pow(2).mean(), atol=1e-5, rtol=1e-5)

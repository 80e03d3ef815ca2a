"""The embedded models load in stock classes, do what they are there for, and are what their README says."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.registry import MODELS, REWARDS, build
from align.sampling import SamplingConfig, rollout
from align.shapes.captions import SKILLS, alterations, parse, requirements, say
from align.shapes.compose import compose
from align.shapes.embedded import FOLDER, names, resolve
from align.shapes.judge import judge
from align.shapes.prompts import prompts
from align.shapes.scene import render_batch
from samplers import Prediction, Rng


def test_shapes_sd_draws_what_is_asked_in_a_stock_pipeline():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(resolve("embedded:shapes-sd")).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = prompts("select", 48)
    images = pipe(
        prompt=captions,
        num_inference_steps=10,
        guidance_scale=2.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images.shape == (48, 3, 32, 32)
    verdicts = judge(images, captions)
    assert sum(v.strict for v in verdicts) / 48 > 0.3  # docs/models/shapes.md has the figure itself, of 20 steps
    blind = judge(images, captions[6:] + captions[:6])  # the next caption of the same skill
    assert sum(v.strict for v in blind) < 0.5 * sum(v.strict for v in verdicts)


def test_shapes_turbo_draws_in_two_steps():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(resolve("embedded:shapes-turbo")).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = prompts("select", 96)
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    verdicts = judge(pipe(prompt=captions, generator=torch.Generator().manual_seed(0), **options).images, captions)
    assert sum(v.strict for v in verdicts) / 96 > 0.2  # of 96; docs/lab/shapes-figures.md has the figure itself


def test_shapes_flow_draws_what_is_asked_in_a_stock_pipeline():
    from diffusers import StableDiffusion3Pipeline

    folder = resolve("embedded:shapes-flow")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = prompts("select", 24)
    options = {"num_inference_steps": 10, "guidance_scale": 2.0, "output_type": "pt"}
    verdicts = judge(pipe(prompt=captions, generator=torch.Generator().manual_seed(0), **options).images, captions)
    assert sum(v.graded for v in verdicts) / 24 > 0.55  # docs/lab/shapes-figures.md has the figure itself, of 20 steps


def test_a_recipe_takes_shapes_flow_for_shapes_sd_by_the_checkpoint_alone():
    from align.config import load_recipe

    recipe = load_recipe("draft/shapes", ["model.checkpoint=embedded:shapes-flow"])
    model = build(MODELS, recipe.model)
    assert model.kind == Prediction.FLOW and model.latent_shape() == (4, 8, 8)
    assert model.text.encode(["a red circle"]).tensors["text"].abs().sum() > 0


def pictures(count: int):
    rng = np.random.default_rng(7)
    every = [list(requirements(s)) for s in SKILLS]
    wanted = [every[i % 6][rng.integers(len(every[i % 6]))] for i in range(count)]
    return wanted, render_batch([compose(r, rng) for r in wanted]), rng


def test_clip_prefers_the_right_caption_to_an_altered_one():
    wanted, images, rng = pictures(300)
    clip = build(REWARDS, REWARDS.look_up({"name": "clip", "model": "embedded:shapes-clip"}))
    options = [list(alterations(r)) for r in wanted]
    with torch.no_grad():
        right = clip(images, [say(r) for r in wanted])
        wrong = clip(images, [say(o[rng.integers(len(o))]) for o in options])
    assert (right > wrong).float().mean() > 0.8


def test_pick_prefers_the_same_scene_in_better_taste():
    rng = np.random.default_rng(9)
    every = list(requirements("colour"))
    wanted = [every[rng.integers(len(every))] for _ in range(200)]
    dull = [compose(r, rng) for r in wanted]
    dull = [replace(s, light=0.2, objects=tuple(replace(o, saturation=0.5) for o in s.objects)) for s in dull]
    vivid = [replace(s, light=0.0, objects=tuple(replace(o, saturation=1.0) for o in s.objects)) for s in dull]
    pick = build(REWARDS, REWARDS.look_up({"name": "clip", "model": "embedded:shapes-pick"}))
    captions = [say(r) for r in wanted]
    with torch.no_grad():
        share = (pick(render_batch(vivid), captions) > pick(render_batch(dull), captions)).float().mean()
    assert share > 0.9


@pytest.mark.slow
def test_gradient_steps_on_the_noise_fool_clip_but_not_the_judge():
    captions = prompts("select", 12)
    model = build(MODELS, MODELS.look_up({"name": "sd", "checkpoint": "embedded:shapes-sd"}))
    clip = build(REWARDS, REWARDS.look_up({"name": "clip", "model": "embedded:shapes-clip"}))
    config = SamplingConfig(num_steps=5, guidance_scale=2.0, window="full", memory="stored")
    rng = Rng(0, range(12))
    x_T = torch.randn(12, *model.latent_shape(), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    optimiser = torch.optim.Adam([x_T], lr=0.05)

    def draw():
        steps = rollout(config, model, model.denoiser(), captions, rng, x_T=x_T, grad=config.grad_policy())
        return model.codec.decode(steps.x0)

    before = draw().detach()
    for _ in range(50):
        optimiser.zero_grad()
        (-clip(draw(), captions).sum()).backward()
        optimiser.step()
    after = draw().detach()
    scored = [clip(x, captions) for x in (before, after)]
    judged = [torch.tensor([v.graded for v in judge(x, captions)]) for x in (before, after)]
    assert (scored[1] - scored[0]).mean() > 0.1
    proxy, truth = (float((b - a).mean() / a.std()) for a, b in (scored, judged))  # in standard deviations of the start
    assert truth < 0.75 * proxy, (truth, proxy)  # the proxy is driven up; the truth does not follow in step


def test_files_are_small_and_listed_with_their_checksums():
    files = sorted(FOLDER.rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 30e6
    readme = (FOLDER / "README.md").read_text()
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"| {path.relative_to(FOLDER)} | {path.stat().st_size} | {digest} |" in readme
    assert not list(FOLDER.rglob("*.bin")) and not list(FOLDER.rglob("*.pt"))


def test_an_unknown_name_lists_the_known_ones():
    known = "clip detector eye flow latent pick sd turbo".split()
    assert names() == [f"shapes-{name}" for name in known]
    with pytest.raises(UserError, match=r"embedded:shapes-xl: there is no embedded checkpoint.*embedded:shapes-sd"):
        resolve("embedded:shapes-xl")
    assert parse(prompts("train", 1)[0]).skill == "single"

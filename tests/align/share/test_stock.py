"""What a stock pipeline is given so that it draws as the run did: the card's lines and `Run.pipeline`, one source."""

import pytest
import torch
from run_toys import finished_run, summary

from align.config import load_recipe
from align.errors import UserError
from align.models._grids import VPGrids
from align.run import Run
from align.share import card
from align.share.stock import Stock
from samplers import VPSchedule

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BASES = {
    "pndm": lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "clipping": lambda: diffusers.DDIMScheduler(**BETAS, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
    "trailing": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "karras": lambda: diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
}
RULES = ("ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "lcm")
BLOCKS = [{"step_rule": rule} for rule in RULES]
BLOCKS += [{"step_rule": rule, "spacing": "trailing"} for rule in RULES if rule != "lcm"]
BLOCKS += [{"step_rule": rule, "spacing": "karras"} for rule in ("euler", "heun", "dpmpp_2m")]
BLOCKS += [{"step_rule": rule, "num_steps": 2, "timesteps": [800, 400]} for rule in ("ddim", "lcm")]


class Pipeline:
    """As much of a pipeline as the card's scheduler lines touch."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def recipe_of(**sampling):
    return load_recipe(
        "draft/sd15_aesthetic", {"sampling": {"num_steps": 5, "last_k": 1, **sampling}, "evaluate": None}
    )


def from_the_card(recipe, base):
    """(the scheduler that the card's lines make of `base`, the arguments of its call)."""
    lines = card.text(recipe, summary()).split("```python")[1].split("```")[0].splitlines()
    held = Pipeline(base)
    names: dict = {"pipeline": held}
    made = [line for line in lines if line.startswith(("from diffusers", "config =", "pipeline.scheduler ="))]
    exec("\n".join(made), names)
    drawn = next(line for line in lines if line.startswith("image = "))
    asked = eval(drawn.removeprefix("image = ").removesuffix(".images[0]"), {"pipeline": lambda prompt, **given: given})
    return held.scheduler, asked


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "-".join(map(str, block.values())))
def test_the_times_of_the_cards_scheduler_are_ours(block, base):
    if block["step_rule"] == "euler_ancestral" and base == "karras":
        pytest.skip("diffusers' ancestral scheduler has no Karras levels")
    recipe, own = recipe_of(**block), BASES[base]()
    grids = VPGrids(VPSchedule.from_config(own.config), dict(own.config))
    scheduler, asked = from_the_card(recipe, own)
    if timesteps := block.get("timesteps"):
        assert asked["timesteps"] == timesteps and "num_inference_steps" not in asked
        scheduler.set_timesteps(timesteps=timesteps)
        assert scheduler.timesteps.tolist() == timesteps
        return
    assert asked["num_inference_steps"] == 5
    scheduler.set_timesteps(5)
    grid = grids(5, (4, 8, 8), block["step_rule"], block.get("spacing"))
    times = grids.schedule.index(grid.times)[: len(scheduler.timesteps)]
    torch.testing.assert_close(times, scheduler.timesteps.double(), rtol=0, atol=0.51)  # some round Karras' times
    if hasattr(scheduler, "sigmas"):
        alpha, sigma = grids.schedule(grid.times)
        torch.testing.assert_close(
            (sigma / alpha)[:-1], scheduler.sigmas.double()[: len(grid.times) - 1], rtol=1e-4, atol=1e-6
        )


def test_what_a_step_rule_is_does_not_come_from_the_checkpoint():
    scheduler, asked = from_the_card(recipe_of(step_rule="ddim", eta=0.5), BASES["clipping"]())
    assert type(scheduler).__name__ == "DDIMScheduler" and not scheduler.config.clip_sample and asked["eta"] == 0.5
    assert not scheduler.config.set_alpha_to_one and scheduler.config.steps_offset == 1
    pndm, _ = from_the_card(recipe_of(step_rule="ddim"), BASES["pndm"]())
    assert not pndm.config.set_alpha_to_one  # PNDM's default, which from_config alone would drop


def test_the_card_names_the_size_and_what_diffusers_has_not():
    text = card.text(recipe_of(image_size=[512, 640], noise_law="cps", guidance_interval=[0.1, 0.9]), summary())
    assert "height=512, width=640" in text
    assert "# drawn here with the noise of cps" in text and "# guided here between t = 0.1 and 0.9" in text


def test_a_run_without_its_adapter_has_no_pipeline(tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_of().yaml())
    with pytest.raises(UserError, match="there is no adapter"):
        Run(tmp_path).pipeline()


def test_a_runs_pipeline_draws_as_the_run_does_and_says_nothing_of_encoders(tmp_path, tiny_sd_factory, caplog):
    run = Run(finished_run(tmp_path, tiny_sd_factory()))
    diffusers.logging.enable_propagation()
    pipeline = run.pipeline()
    assert "No LoRA keys" not in caplog.text
    pipeline.set_progress_bar_config(disable=True)
    plain = {"generator": torch.Generator().manual_seed(0), "output_type": "np"}
    steps: list = []
    first = pipeline("a red circle", callback_on_step_end=lambda p, i, t, k: steps.append(int(t)) or k, **plain).images
    assert len(steps) == 3 and pipeline.guidance_scale == 2.0
    plain["generator"].manual_seed(0)
    said = pipeline("a red circle", num_inference_steps=3, guidance_scale=2.0, **plain).images
    assert (first == said).all()
    pipeline("a red circle", None, None, 5, guidance_scale=1.5, **plain)
    assert pipeline.guidance_scale == 1.5 and pipeline.num_timesteps == 5
    assert isinstance(pipeline, diffusers.StableDiffusionPipeline)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "saved")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")) is diffusers.StableDiffusionPipeline


@pytest.mark.parametrize("order", [("prompt", "image"), ("image", "prompt")])
def test_a_text_by_place_is_the_prompt_also_where_a_pipeline_takes_a_picture_first(order):
    """As FLUX.2's does, whose first argument is a picture to edit."""
    body = "def __call__(self, {}=None, {}=None, steps=0): return {{'prompt': prompt, 'image': image, 'steps': steps}}"
    names: dict = {}
    exec(body.format(*order), names)
    kind = type("Stocked", (), {"__call__": names["__call__"]})
    drawn = Stock(None, {}, {"steps": 4}).put_on(kind())
    assert drawn("a fox") == {"prompt": "a fox", "image": None, "steps": 4}
    assert drawn(["a fox"], "a picture") == {"prompt": ["a fox"], "image": "a picture", "steps": 4}
    picture = object()
    assert drawn(**{order[0]: picture})[order[0]] is picture and drawn(picture)[order[0]] is picture

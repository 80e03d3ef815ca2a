"""The adapter's card: metadata that the Hub's own reader takes, the strength, every score, the way to load it."""

import re

import yaml
from huggingface_hub import ModelCardData
from run_toys import summary

import align
from align.config import load_recipe
from align.reports import summary as reports
from align.sampling.solver import Solver
from align.share import card, solver_card

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def read(text):
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_the_card_says_how_to_use_the_adapter_and_what_it_reached(tmp_path):
    recipe = load_recipe("draft/shapes", {"adapter.rank": 5})
    metadata, body = read(card.write(tmp_path, recipe, summary(stopped="the guard: enough")).read_text())
    assert "base_model" not in metadata  # the embedded world is no repository
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "diffusers"
    assert 'set_adapters("align", 0.75)' in body and "rank 5" in body and "update 40" in body
    assert "Ended early: the guard: enough." in body
    assert re.search(r"\| pick \| yes \| 0\.0000 \[.*\] \| 1\.0000 \[.*\] \| 1\.0000 \[.*\] \| 100, 0 % \|", body)
    assert re.search(r"\| gold \| no \| 0\.0000 \[.*\] \| 0\.5000", body)
    assert "Recommended strength: 0.75" in body and re.search(r"0\.5: \S+, 0\.75: \+0\.310", body)
    assert "a machine; 1 process" in body and "torch 2.6" in body


def test_what_a_run_says_is_no_markup():
    nasty = "<script>x</script> [a](javascript:b) | `c` *d*"
    text = card.text(load_recipe("draft/shapes"), summary(stopped=nasty, hardware=nasty, report_prompts=nasty))
    _, body = read(text)
    assert r"\<script\>x\</script\> \[a\](javascript:b) \| \`c\` \*d\*" in body
    assert "<script" not in body.replace(r"\<", "") and "](javascript" not in body.replace(r"\]", "")


def test_an_adapter_that_changes_nothing_says_so(tmp_path):
    for chosen, said in ((0, True), (40, False)):
        found = summary(chosen_update=chosen)
        told = "none of the 60 updates better than the base"
        assert (told in card.text(load_recipe("draft/shapes"), found)) == said
        assert any(told in line for line in reports.lines(found, tmp_path)) == said


def test_prompts_of_the_recipe_are_named_by_their_number():
    metadata, body = read(card.text(load_recipe("draft/shapes"), summary(report_prompts="3 prompts of the recipe")))
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "3 prompts of the recipe"
    assert "(3 prompts of the recipe), at the same seeds" in body


def test_without_a_guard_the_strength_is_one():
    text = card.text(load_recipe("draft/shapes"), summary(findings={}, scores={}))
    assert 'set_adapters("align", 1)' in text and "Recommended" not in text and "| score |" not in text


def test_a_strength_that_is_not_surely_better_is_not_recommended():
    findings = dict(summary().findings)
    (label,) = (name for name, found in findings.items() if "recommended_strength" in found)
    doubted = {"better": False, "mean": 0.01, "low": -0.09, "high": 0.11}
    findings[label] = {**findings[label], "gain": doubted}
    _, body = read(card.text(load_recipe("draft/shapes"), summary(findings=findings)))
    assert "Recommended" not in body
    assert r"The strength is left at 0.75: not surely better than the base, +0.01 \[-0.09, +0.11\] of its" in body
    findings[label]["gain"] = {**doubted, "better": True, "low": 0.005}
    _, body = read(card.text(load_recipe("draft/shapes"), summary(findings=findings)))
    assert "Recommended strength: 0.75: better than the base, +0.01" in body


def test_the_hubs_own_reader_finds_the_scores():
    shown = card.Shown("before_after.png", {"images/0000-after.png": "a cat: \"quoted\", 'twice'"})
    metadata, body = read(card.text(load_recipe("draft/sd15_aesthetic"), summary(), "me/adapter", shown))
    assert metadata["base_model"] == HUB and metadata["base_model_relation"] == "adapter"
    assert metadata["license"] == "creativeml-openrail-m"
    assert metadata["widget"] == [
        {"text": shown.images["images/0000-after.png"], "output": {"url": "images/0000-after.png"}}
    ]
    data = ModelCardData(**metadata)
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results or ()] == [
        ("pick", "pick before", 0.0), ("pick", "pick after", 1.0),
        ("gold", "gold before", 0.0), ("gold", "gold after", 0.5),
    ]  # fmt: skip
    assert 'load_lora_weights("me/adapter", adapter_name="align")' in body and "THIS_FOLDER" not in body
    assert "(before_after.png)" in body and "<Gallery />" in body


def test_a_licence_that_the_hub_has_no_name_for_is_named_in_words():
    turbo = load_recipe("draft/sd15_aesthetic", {"model.checkpoint": "stabilityai/sd-turbo"})
    metadata, _ = read(card.text(turbo, summary()))
    assert (metadata["license"], metadata["license_name"]) == ("other", "sai-nc-community")
    mine = load_recipe("draft/sd15_aesthetic", {"model.checkpoint": "me/model"})
    assert "license" not in read(card.text(mine, summary()))[0]
    assert read(card.text(mine, summary(), licence="mit"))[0]["license"] == "mit"


def test_the_lines_for_the_embedded_model_draw_an_image(tmp_path):
    run = align.train(
        "draft/shapes",
        {"train": {"num_updates": 1, "batch_size": 1}, "hooks": {}, "evaluate": None, "output": str(tmp_path / "run")},
    )
    _, body = read((run.output / "adapter" / "README.md").read_text())
    code = body.split("```python")[1].split("```")[0].replace("THIS_FOLDER", str(run.output / "adapter"))
    found: dict = {}
    exec(compile(code, "card", "exec"), found)
    assert found["image"].size == (32, 32)


def test_a_base_that_was_put_together_is_put_together_again():
    changes = {"model.base_adapter": "latent/lcm:lcm.safetensors", "model.revision": "fp16"}
    _, body = read(card.text(load_recipe("draft/sd15_aesthetic", changes), summary()))
    code = body.split("```")[1]
    assert f'from_pretrained("{HUB}", revision="fp16")' in code
    assert code.index('load_lora_weights("latent/lcm", weight_name="lcm.safetensors")') < code.index("fuse_lora")
    assert code.index("unload_lora_weights") < code.index("THIS_FOLDER")


def test_a_network_of_its_own_is_put_into_the_pipeline():
    def code(network):
        recipe = load_recipe("draft/sd15_aesthetic", {"model.network": network}, on_disk=False)
        return read(card.text(recipe, summary()))[1].split("```")[1]

    assert 'pipeline.unet = pipeline.unet.from_pretrained("latent/dpo", subfolder="unet")' in code("latent/dpo")
    said = code("latent/few:one-step.safetensors")
    assert 'pipeline.unet.load_state_dict(load_file(hf_hub_download("latent/few", "one-step.safetensors")))' in said
    assert said.index("pipeline = ") < said.index("pipeline.unet") < said.index("THIS_FOLDER")


def test_a_pipeline_without_a_lora_loader_is_told_another_way():
    from diffusers import PixArtSigmaPipeline

    assert not hasattr(PixArtSigmaPipeline, "load_lora_weights")
    changes = {"model": {"name": "pixart", "checkpoint": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"}}
    _, body = read(card.text(load_recipe("draft/sd15_aesthetic", changes, on_disk=False), summary(), "me/adapter"))
    code = body.split("```python")[1].split("```")[0]
    assert "load_lora_weights(" not in code
    assert 'attach(pipeline.transformer, Path(snapshot_download("me/adapter")), component="transformer"' in code
    compile(code, "card", "exec")


def test_a_solvers_card_draws_with_the_guidance_that_it_was_learned_for(tmp_path):
    """Steps that were learned at guidance 2 and drawn at the default of 7.5 are for nobody's pictures."""
    from align.sampling import SamplingConfig

    Solver((1.0, 0.5, 0.0), (0.1,), 1.0, "epsilon", "any", "guidance 2").write(tmp_path)
    block = {"scale": 2.0, "interval": [0.1, 0.9]}
    for changes, wanted in (
        ([], {"guidance_scale": 2.0}),
        (["sampling.guidance_scale=7.5"], {"guidance_scale": 7.5}),
        (['sampling.negative_prompt="a\\n```\\n<b>"'], {"negative_prompt": "a\n```\n<b>"}),
        (["sampling={num_steps: 2, guidance: {scale: 2.0, interval: [0.1, 0.9]}}"], {"guidance": block}),
    ):
        text = solver_card.text(load_recipe("solver/shapes", changes), summary(), tmp_path)
        told = yaml.safe_load(re.search(r"```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1])["sampling"]
        assert {key: told.get(key) for key in wanted} == wanted and told["num_steps"] == 2
        assert told["solver"] == "PATH_OF/solver.json" and ("guidance_scale" in told) == ("guidance" not in told)
        called = re.search(r"sampling = (SamplingConfig\(.*\))", text)[1]
        drawn = eval(called, {"SamplingConfig": SamplingConfig})
        assert drawn == SamplingConfig(**told) and drawn.num_steps == 2

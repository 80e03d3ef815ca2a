"""Learnt tokens on their way to other people and programs: exported, published and read by a stock pipeline."""

import pytest
import torch
import yaml
from run_toys import finished_run

from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.policy import adapter_file
from align.policy.soft_prompt import FILE_NAME, SoftPrompt, read
from align.share import export, publish

PROMPT = "a <thing> circle"


@pytest.fixture
def learnt(tiny_sd_factory, tmp_path):
    """(a run's folder with two tokens in place of an adapter, the encoding of PROMPT with them)."""
    run = finished_run(tmp_path, tiny_sd_factory())
    (run / "adapter" / adapter_file.FILE_NAME).unlink()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["objective"] = {"name": "soft_prompt", "token": "<thing>", "gradient": "zeroth"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    tokens = SoftPrompt.starting(model, "<thing>", "red", 2)
    tokens.load_state_dict({"rows": tokens.rows.detach() + 0.3})
    tokens.export(run / "adapter")
    return run, model.text.encode([PROMPT]).tensors["text"]


def test_an_exported_and_a_published_file_draw_alike(learnt, tiny_sd_factory, tmp_path):
    run, mine = learnt
    path = export.export(run, "textual_inversion", tmp_path / "out")
    assert path.name == "thing.safetensors"
    files = publish.compose(run, "me/word")
    publish.write(files, tmp_path / "look")
    assert not (tmp_path / "look" / adapter_file.FILE_NAME).exists()
    card = (tmp_path / "look" / "README.md").read_text()
    assert f'pipeline.load_textual_inversion("me/word", weight_name="{FILE_NAME}")' in card
    assert "load_lora_weights" not in card and yaml.safe_load(card.split("---")[1])["tags"][0] == "textual_inversion"
    for folder, name in ((tmp_path / "out", path.name), (tmp_path / "look", FILE_NAME)):
        pipeline = tiny_sd_factory()
        pipeline.load_textual_inversion(str(folder), weight_name=name)
        theirs, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_what_tokens_cannot_be_is_said(learnt, tmp_path):
    run, _ = learnt
    with pytest.raises(UserError, match=r"holds learnt tokens, and no adapter\. Choose textual_inversion"):
        export.export(run, "kohya", tmp_path / "out")
    with pytest.raises(UserError, match=r"--strength 0\.5: learnt tokens have none"):
        export.export(run, "textual_inversion", tmp_path / "out", strength=0.5)
    with pytest.raises(UserError, match="holds no learnt tokens"):
        export.export(tmp_path / "base", "textual_inversion", tmp_path / "out")
    (tmp_path / FILE_NAME).write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read(tmp_path / FILE_NAME)
    assert not (tmp_path / "out").exists()

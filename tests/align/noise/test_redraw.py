"""Images drawn again from their noise: the model of --render-with is looked at before anything is drawn, and a noise
that does not say what it is of is refused in a line."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_sd import tiny_sd
from typer.testing import CliRunner

from align.commands.app import app
from align.errors import UserError
from align.noise.redraw import latents_of

WRONG = {
    "nowhere/at/all": "no such folder or file",
    "me/there-is-none": "HF_HUB_OFFLINE",
    "{folder}": "no model_index.json",
    "{tiny}": "draws from noise of shape (4, 8, 8), and what is optimised has (4, 16, 8)",
}


@pytest.mark.parametrize("model", WRONG)
def test_a_model_that_cannot_draw_them_is_said_before_anything_is_drawn(tmp_path, monkeypatch, model):
    (tmp_path / "folder").mkdir()
    named = model.format(folder=tmp_path / "folder", tiny=tmp_path / "tiny")
    given = ["reno", "a red circle", "--render-with", named, "-o", str(tmp_path / "out")]
    if model == "{tiny}":
        tiny_sd().save_pretrained(tmp_path / "tiny")
        given += ["--set", "sampling.image_size=[64, 32]"]
    monkeypatch.setattr("align.noise.run.Session.run", lambda *_, **__: pytest.fail("drawn"))
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2, done.exception
    assert done.stderr.startswith(f"--render-with {named}: ") and WRONG[model] in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_latents_of_a_model_are_known_without_its_weights():
    assert latents_of("embedded:shapes-turbo", "--render-with") == latents_of("embedded:shapes-sd", "--render-with")
    with pytest.raises(UserError, match=r"^--render-with embedded:nothing: "):
        latents_of("embedded:nothing", "--render-with")


SAID = {"recipe": "train: {}", "prompt": "a red circle", "index": "0"}
DAMAGED = ({}, {"recipe": "[1"}, {"recipe": "[1]"}, {"recipe": "model: sd"}, {"index": "x"})


@pytest.mark.parametrize("changes", DAMAGED, ids=str)
def test_a_noise_that_does_not_say_what_it_is_of(tmp_path, changes):
    said = SAID | changes if changes else None
    save_file({"x_T": torch.zeros(4, 8, 8)}, tmp_path / "noise.safetensors", metadata=said)
    done = CliRunner().invoke(app, ["redraw", str(tmp_path / "noise.safetensors")])
    assert done.exit_code == 2 and "noise.safetensors: does not say its recipe" in done.stderr, done.exception
    assert done.stderr.count("\n") == 1

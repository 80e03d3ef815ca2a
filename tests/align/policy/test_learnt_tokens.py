"""Trained tokens: the encoder's table stays as it is, and diffusers loads the file to the same encodings."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.policy.soft_prompt import FILE_NAME, SoftPrompt

PROMPTS = ["a <thing> circle", "a red circle", ""]


@pytest.fixture
def model(tiny_sd_factory):
    return StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_trained_token_moves_and_no_other_row_does(model, num_tokens, tmp_path, tiny_sd_factory):
    before = copy.deepcopy(model.text.text_model.state_dict())
    plain = model.text.encode(PROMPTS[1:]).tensors["text"]
    tokens = SoftPrompt.starting(model, "<thing>", "red", num_tokens)
    start = tokens.rows.detach().clone()
    optimiser = torch.optim.Adam(tokens.parameters(), lr=0.1)
    model.text.encode(PROMPTS, grad=True).tensors["text"].square().sum().backward()
    optimiser.step()
    assert bool((tokens.rows != start).any(1).all())  # every token of the placeholder is read
    table = model.text.text_model.get_input_embeddings()
    state = model.text.text_model.state_dict()
    after = {name.replace("inner.", ""): value for name, value in state.items() if "rows" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(table.weight, table.inner.weight)
    assert torch.equal(model.text.encode(PROMPTS[1:]).tensors["text"], plain)  # what has no token in it, and the uncond
    then = model.text.encode(PROMPTS[:1]).tensors["text"]
    torch.optim.AdamW(tokens.parameters(), lr=0.1, fused=True).step()  # it leaves no trace in the tensor's version
    assert not torch.equal(model.text.encode(PROMPTS[:1]).tensors["text"], then), "an encoding of before"
    tokens.export(tmp_path)
    assert load_file(tmp_path / FILE_NAME)["<thing>"].shape == (num_tokens, table.weight.shape[1])

    pipeline = tiny_sd_factory()
    pipeline.load_textual_inversion(str(tmp_path), weight_name=FILE_NAME)
    mine = model.text.encode(PROMPTS[:1]).tensors["text"]
    theirs, _ = pipeline.encode_prompt(PROMPTS[0], "cpu", 1, False)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)

    other = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    SoftPrompt.load(other, tmp_path / FILE_NAME)
    assert torch.equal(other.text.encode(PROMPTS[:1]).tensors["text"], mine)


def test_rows_for_a_while_are_given_back_bit_for_bit(model):
    tokens = SoftPrompt.starting(model, "<thing>", "red", 1)
    before, own = model.text.encode(PROMPTS).tensors["text"], tokens.rows.detach().clone()
    with tokens.at(own + 1e-3):
        moved = model.text.encode(PROMPTS).tensors["text"]
    assert torch.equal(tokens.rows, own) and not torch.equal(moved[0], before[0]) and torch.equal(moved[1:], before[1:])
    assert torch.equal(model.text.encode(PROMPTS).tensors["text"], before)


def test_what_cannot_be_trained_is_said(model):
    with pytest.raises(UserError, match="the tokenizer knows this word"):
        SoftPrompt.starting(model, model.text.tokenizer.tokenizer.eos_token, "red", 1)
    with pytest.raises(UserError, match="They are of another model"):
        SoftPrompt(model, "<thing>", torch.zeros(1, 3))
    model.text = object()
    with pytest.raises(UserError, match="sd: trained tokens are of one CLIP text encoder"):
        SoftPrompt.starting(model, "<thing>", "red", 1)

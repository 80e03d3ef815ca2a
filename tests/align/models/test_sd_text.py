import pytest
import torch

from align.models import _text
from align.models._text import CLIPText


@pytest.fixture
def text(tiny_sd_factory):
    pipeline = tiny_sd_factory()
    return CLIPText(pipeline.tokenizer, pipeline.text_encoder.requires_grad_(False))


@pytest.fixture
def calls(text):
    seen = []
    text.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids", args[0] if args else None)), with_kwargs=True
    )
    return seen


def test_embeddings_are_the_pipelines(tiny_sd_factory):
    pipeline = tiny_sd_factory()
    ours = CLIPText(pipeline.tokenizer, pipeline.text_encoder).encode(["a red circle", ""]).tensors["text"]
    theirs, _ = pipeline.encode_prompt(["a red circle", ""], "cpu", 1, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_each_prompt_is_encoded_once(text, calls):
    first = text.encode(["a star", "a circle", "a star"]).tensors["text"]
    assert len(calls) == 2
    again = text.encode(["a circle", "a star"]).tensors["text"]
    assert len(calls) == 2
    assert torch.equal(first[[1, 0]], again) and torch.equal(first[0], first[2])


def test_a_row_does_not_depend_on_the_prompts_it_came_with(text, tiny_sd_factory):
    together = text.encode(["a star", "a circle", "a red square"]).tensors["text"]
    pipeline = tiny_sd_factory()
    alone = CLIPText(pipeline.tokenizer, pipeline.text_encoder).encode(["a circle"]).tensors["text"]
    assert torch.equal(together[1:2], alone)


def test_changed_weights_are_another_cache(text, calls):
    before, name = text.encode(["a star"]).tensors["text"], text.fingerprint()
    with torch.no_grad():
        text.text_model.embeddings.token_embedding.weight[5:].add_(0.5)
    after = text.encode(["a star"]).tensors["text"]
    assert len(calls) == 2 and not torch.equal(before, after) and text.fingerprint() != name
    with torch.no_grad():
        embedding = text.text_model.embeddings.token_embedding.weight
        embedding.data = embedding.data.clone()
    assert text.encode(["a star"]).tensors["text"].equal(after) and len(calls) == 2  # the same weights elsewhere


def test_the_fingerprint_is_of_the_weights(text, tiny_sd_factory):
    same, other = tiny_sd_factory(), tiny_sd_factory(seed=1)
    assert CLIPText(same.tokenizer, same.text_encoder).fingerprint() == text.fingerprint()
    assert CLIPText(other.tokenizer, other.text_encoder).fingerprint() != text.fingerprint()
    same.text_encoder.to(torch.bfloat16)
    assert CLIPText(same.tokenizer, same.text_encoder).fingerprint() != text.fingerprint()


def test_gradients_bypass_the_cache(text, calls):
    weight = text.text_model.embeddings.token_embedding.weight.requires_grad_()
    text.encode(["a star"])
    cond = text.encode(["a star"], grad=True)
    assert len(calls) == 2 and cond.tensors["text"].requires_grad
    cond.tensors["text"].sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert not text.encode(["a star"]).tensors["text"].requires_grad and len(calls) == 2


def test_the_cache_is_bounded_and_drops_the_oldest(text, calls, monkeypatch):
    text.encode(["a"])
    monkeypatch.setattr(_text, "MAX_CACHED_BYTES", 2 * text._bytes)
    for prompt in ("a", "b", "a", "c"):  # b is the one not used for longest
        text.encode([prompt])
    calls.clear()
    text.encode(["a", "c"])
    assert calls == []
    text.encode(["b"])
    assert len(calls) == 1


def test_of_a_text_that_is_no_prompt_only_the_beginning_of_what_was_cut_is_shown(text):
    with pytest.warns(UserWarning, match=r'lost: ".{120}" and \d+ letters more$') as found:
        text.encode(["word " * 5000])
    assert len(str(found[0].message)) < 300


def test_a_prompt_that_is_too_long_says_what_was_cut(text):
    with pytest.warns(UserWarning, match='16 tokens that the text encoder reads; lost: "left"'):
        text.encode(["aaaa bbbb cccccc left"])


def test_a_prompt_that_fits_exactly_says_nothing(text, recwarn):
    text.encode(["aaaa bbbb cccccc"])  # 14 tokens between start and end
    assert not [warning for warning in recwarn if "prompt cut" in str(warning.message)]


def test_a_tokenizer_without_a_limit_takes_the_models(tiny_sd_factory):
    pipeline = tiny_sd_factory()
    pipeline.tokenizer.model_max_length = int(1e30)
    assert CLIPText(pipeline.tokenizer, pipeline.text_encoder).encode(["a"]).tensors["text"].shape == (1, 16, 16)


def test_the_attention_mask_is_used_where_the_model_asks_for_it(text):
    plain = text.encode(["a star"]).tensors["text"]
    text.text_model.config.use_attention_mask = True
    text._cache.clear()
    masked = text.encode(["a star"]).tensors["text"]
    assert not torch.allclose(plain[:, 8:], masked[:, 8:])

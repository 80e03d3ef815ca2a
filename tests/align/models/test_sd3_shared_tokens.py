"""Zeros in place of T5's states go through as one token: the same samples and gradients, less work."""

import pytest
import torch
from tiny_families import sd3

from align.models.sd3 import SD3Config, StableDiffusion3
from align.policy.lora import AdapterConfig
from align.policy.trainable import Adapter

diffusers = pytest.importorskip("diffusers")

MEDIUM, LARGE = StableDiffusion3.published[1:]
NUM_ZEROS = 256
SIZE = (32, 64)


def pipeline(*, dual=False):
    """SD3.5-large's tiny one, which has no T5; or 3.5-medium's, with attention of the image alone, without its T5."""
    built = sd3.build(MEDIUM if dual else LARGE)
    built.register_modules(text_encoder_3=None, tokenizer_3=None)
    built.set_progress_bar_config(disable=True)
    return built


def wrap(built, **settings):
    return StableDiffusion3(SD3Config(checkpoint="tiny", t5_tokens=NUM_ZEROS, **settings), built)


def example(model, rows=2):
    x_t = torch.randn(rows, *model.latent_shape(SIZE), generator=torch.Generator().manual_seed(1))
    return x_t, torch.tensor([0.9, 0.4])[:rows], model.text.encode(["a red circle", "two stars, blue"][:rows])


def lengths(model):
    """Of the text that each call of the network saw."""
    seen = []
    model.network.context_embedder.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    return seen


@pytest.mark.parametrize("dual", [False, True])
def test_the_stock_network_on_all_the_zeros_says_the_same(dual):
    model = wrap(pipeline(dual=dual))
    x_t, t, cond = example(model)
    text = cond.tensors["text"]
    assert bool((text[:, -NUM_ZEROS:] == 0).all())
    pooled = cond.tensors["pooled"]

    def stock(text):
        network = pipeline(dual=dual).transformer
        return network(x_t, timestep=1000 * t, encoder_hidden_states=text, pooled_projections=pooled)[0]

    seen = lengths(model)
    with torch.no_grad():
        expected = stock(text)
        found = model.denoiser()(x_t, t, cond)
        one = stock(text[:, : seen[0]])
    assert seen == [text.shape[1] - NUM_ZEROS + 1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float((one - expected).abs().max()) > 1e-2  # that it counts for all of them matters


def gradient(model):
    adapter = Adapter(AdapterConfig(rank=2), model.network, list(model.lora_targets), component="transformer", seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in adapter.state_dict().items():
            if "lora_B" in key:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    x_t, t, cond = example(model)
    model.denoiser()(x_t, t, cond).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])


@pytest.mark.parametrize("dual", [False, True])
def test_gradients_are_those_of_all_the_zeros_whether_blocks_are_computed_again_or_not(dual):
    plain = wrap(pipeline(dual=dual))
    plain.num_equal = 1
    seen = lengths(plain)
    expected = gradient(plain)
    assert seen[0] > NUM_ZEROS and float(expected.norm()) > 0
    for again in (False, True):
        model = wrap(pipeline(dual=dual), checkpoint_blocks=again)
        assert model.network.is_gradient_checkpointing == again
        found = gradient(model)
        assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_a_compiled_network_gives_the_same_gradient():
    model = wrap(pipeline(dual=True))
    model.network.compile(backend="aot_eager")
    assert torch.equal(gradient(model), gradient(wrap(pipeline(dual=True))))


def test_the_bundles_own_pipeline_is_the_stock_one():
    model, built = wrap(pipeline()), pipeline()
    again = model.to_pipeline()
    again.set_progress_bar_config(disable=True)
    z = example(model)[0]
    options = {"max_sequence_length": NUM_ZEROS}
    images = [sd3.sample(p, ["a star", "a red circle"], z, SIZE, 2, 3.0, **options) for p in (again, built)]
    assert torch.equal(*images)


def test_a_large_picture_and_a_model_with_t5_take_the_plain_way():
    model = wrap(pipeline())
    seen = lengths(model)
    x_t = torch.randn(1, *model.latent_shape((128, 128)))
    cond = model.text.encode(["a star"])
    with torch.no_grad():
        model.denoiser()(x_t, torch.tensor([0.5]), cond)
    assert seen == [cond.tensors["text"].shape[1]]
    assert StableDiffusion3(SD3Config(checkpoint="tiny"), sd3.build(MEDIUM)).num_equal == 1


def test_kernels_that_take_no_count_get_all_the_zeros(monkeypatch):
    monkeypatch.setattr("align.models._options.PACKAGES", {})
    monkeypatch.setattr("align.models._pipeline.set_attention", lambda *_: None)  # it asks for a GPU
    assert wrap(pipeline(), attention="xformers").num_equal == 1
    assert wrap(pipeline()).num_equal == NUM_ZEROS

"""Soft prompts: the zeroth-order estimate's closed forms, and trainings that move the tokens alone."""

import pytest
import torch
from PIL import Image

import align
from align.config import load_recipe
from align.data.captioned import CaptionedBatch
from align.errors import UserError
from align.models.sd import SDConfig, StableDiffusion
from align.objectives._base import Parts
from align.objectives._zeroth import estimate, surrogate
from align.objectives.soft_prompt import SoftPromptConfig, SoftPromptObjective
from align.policy.roles import Policy
from align.sampling import SamplingConfig
from samplers import Rng


def test_the_estimate_is_the_gradient_and_has_its_length():
    """Of a linear loss: E g = gradient/root, E |g|^2 = |gradient|^2 (d + n + 1)/(d + n - 1)."""
    d, n, draws = 6, 2, 40_000
    slope = torch.linspace(-1, 1, d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, draws, d, dtype=torch.float64, generator=generator)
    start = torch.zeros(d, dtype=torch.float64)
    _, one = estimate(lambda theta: (slope * theta).sum()[None], start, [z[0, 0], z[1, 0]], 1e-3)
    root = ((d + n - 1) / n) ** 0.5
    each = ((z @ slope).unsqueeze(-1) * z).mean(0) / root  # the same for every draw
    torch.testing.assert_close(one[0].double(), each[0], rtol=1e-5, atol=1e-6)
    assert (each.mean(0) * root - slope).abs().max() < 0.06
    length = float(each.square().sum(1).mean() / slope.square().sum())
    assert length == pytest.approx((d + n + 1) / (d + n - 1), rel=0.03)


def test_the_surrogate_has_the_losses_values_and_the_estimates_gradients():
    theta = torch.zeros(2, 3, requires_grad=True)
    base, gradient = torch.tensor([1.0, 2.0]), torch.randn(2, 2, 3)
    losses = surrogate(base, gradient, theta)
    assert torch.equal(losses.detach(), base)
    (found,) = torch.autograd.grad(losses.sum(), theta)
    torch.testing.assert_close(found, gradient.sum(0))


SMALL = {
    "train.num_updates": 2,
    "train.batch_size": 2,
    "sampling.num_steps": 2,
    "sampling.last_k": 1,
    "hooks": {},
}


@pytest.mark.parametrize("gradient", ["backprop", "zeroth"])
def test_a_run_leaves_tokens_that_are_drawn_with(tmp_path, gradient):
    from align.commands.sample import sample

    said = SMALL | {"output": str(tmp_path / "run"), "objective.gradient": gradient, "objective.num_tokens": 2}
    run = align.train("soft_prompt/shapes", said)
    assert run.metrics[-1]["token_norm"] != run.metrics[0]["token_norm"]
    assert all(isinstance(record["reward/total"], float) for record in run.metrics)
    pipeline = run.pipeline()
    assert "<vivid>_1" in pipeline.tokenizer.get_vocab()
    (path,) = sample(str(run.output), ["a red circle <vivid>"], output=tmp_path / "images")
    assert path.is_file()
    assert "load_textual_inversion" in (run.output / "adapter" / "README.md").read_text()


def test_pictures_teach_by_the_error_of_their_noise(tiny_sd_factory, tmp_path):
    """By hand at t = 1/2: |out(alpha x_0 + sigma eps, t, caption) - eps|^2, which moves the tokens and nothing else."""
    model = StableDiffusion(SDConfig(checkpoint="tiny"), tiny_sd_factory())
    height, width = model.image_size
    files = tuple(tmp_path / f"{i}.png" for i in range(2))
    for i, file in enumerate(files):
        Image.new("RGB", (width, height), (200, 90 * i, 40)).save(file)
    times = (0.5, 0.5 + 1e-12)
    config = SoftPromptConfig(token="<thing>", init="red", learn_from="pictures", caption="a <thing>", times=times)
    objective = SoftPromptObjective(config, Parts(model, SamplingConfig(num_steps=2, memory="stored"), None, 5))
    policy, batch = Policy(model), CaptionedBatch(("one", "two"), (3, 8), 0, files, (height, width))
    loss = objective(policy, batch)
    loss.per_sample.sum().backward()
    grads = {name for name, p in model.network.named_parameters() if p.grad is not None}
    assert not grads and float(objective.trainable.rows.grad.abs().sum()) > 0

    rng = Rng(5, batch.indices, 0)
    with torch.no_grad():
        posterior = model.codec.encode(batch.images())
        x0 = posterior.sample(rng.normal("posterior", posterior.mean))
        eps = rng.normal("soft_prompt", x0)
        t = torch.full((2,), 0.5, dtype=torch.float64)
        alpha, sigma = (float(value[0]) for value in model.schedule(t))
        out = model.denoiser()(alpha * x0 + sigma * eps, t, model.text.encode(["a <thing>"] * 2))
    torch.testing.assert_close(loss.per_sample, (out - eps).square().flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="stands in none of these captions, such as 'one'"):
        objective.config = config.model_copy(update={"caption": None})
        objective(policy, batch)


def test_wrong_recipes_are_refused():
    with pytest.raises(UserError, match=r"is pictures, and data\.name=prompts gives none"):
        load_recipe("soft_prompt/shapes", {"objective.learn_from": "pictures"})
    with pytest.raises(UserError, match="the text encoder is what is trained"):
        load_recipe("soft_prompt/shapes", {"model.offload_text": True})
    with pytest.raises(UserError, match="is not differentiable"):
        load_recipe("soft_prompt/shapes", {"rewards": {"judge": {}}})
    load_recipe("soft_prompt/shapes", {"rewards": {"judge": {}}, "objective.gradient": "zeroth"})

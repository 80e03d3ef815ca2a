"""The gradient of a scalar of the decoded image, through guidance, the last K steps and the autoencoder, in float64,
against finite differences of the same forward computation."""

import pytest
import torch

from align.models.sd import SDConfig, StableDiffusion
from samplers import GradPolicy, Grid, cfg, last, sample

N, PROMPTS = 4, ["a red circle", "two stars"]
EPS = 1e-5


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "blocks"])
def model(request, tiny_sd_factory):
    pipeline = tiny_sd_factory()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.to(torch.float64)
    return StableDiffusion(SDConfig(checkpoint="tiny", checkpoint_blocks=request.param, decode_chunk=1), pipeline)


class Trainable:
    """The attention weights, moved along one random direction: theta -> W + theta D."""

    def __init__(self, model):
        generator = torch.Generator().manual_seed(0)
        self.weights = [weight for name, weight in model.network.named_parameters() if "attn" in name and "to_" in name]
        self.base = [weight.detach().clone() for weight in self.weights]
        self.directions = [torch.randn(weight.shape, generator=generator).double() for weight in self.weights]

    def move(self, theta):
        with torch.no_grad():
            for weight, base, direction in zip(self.weights, self.base, self.directions, strict=True):
                weight.copy_(base + theta * direction)

    def slope(self, value):
        """d value/d theta by autograd."""
        gradients = torch.autograd.grad(value, self.weights)
        return float(sum((g * d).sum() for g, d in zip(gradients, self.directions, strict=True)))


@pytest.fixture(scope="module")
def setting(model):
    trainable = Trainable(model)
    for weight in trainable.weights:
        weight.requires_grad_()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    reader = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    grid = model.grids(N, model.latent_shape(), "ddim")
    denoiser = cfg(model.denoiser(), model.text.encode([""]), 4.0)
    cond = model.text.encode(PROMPTS)

    def run(x, times, policy=None):
        return sample(denoiser, x, Grid(times), cond, grad=policy or last(0)).x0

    def read(x0):
        return (model.codec.decode(x0) * reader).sum()

    return trainable, z, grid, run, read


def numeric_slope(setting, k):
    """Central difference of the last K steps and the decoder; the steps before them stay at theta = 0."""
    trainable, z, grid, run, read = setting
    trainable.move(0.0)
    boundary = run(z, grid.times[: N - k + 1]) if k < N else z
    values = []
    for theta in (EPS, -EPS):
        trainable.move(theta)
        with torch.no_grad():
            values.append(float(read(run(boundary, grid.times[N - k :]))))
    trainable.move(0.0)
    return (values[0] - values[1]) / (2 * EPS)


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("k", [1, 2, N])
def test_gradient_of_the_image_is_the_finite_difference(setting, k, checkpoint):
    trainable, z, grid, run, read = setting
    value = read(run(z, grid.times, GradPolicy(last(k).keep, checkpoint=checkpoint)))
    assert trainable.slope(value) == pytest.approx(numeric_slope(setting, k), rel=1e-5)


def test_a_shorter_window_is_another_gradient(setting):
    trainable, z, grid, run, read = setting
    slopes = [trainable.slope(read(run(z, grid.times, last(k)))) for k in (1, 2, N)]
    assert abs(slopes[0] - slopes[2]) > 1e-2 * abs(slopes[2]) and abs(slopes[1] - slopes[2]) > 1e-3 * abs(slopes[2])


def test_checkpointing_changes_no_bit_of_the_forward_pass(setting):
    _, z, grid, run, read = setting
    stored = read(run(z, grid.times, GradPolicy(last(2).keep, checkpoint=False)))
    recomputed = read(run(z, grid.times, last(2)))
    assert float(stored) == float(recomputed)


def test_gradient_reaches_the_initial_noise(model, setting):
    _, z, grid, run, read = setting
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(read(run(z, grid.times, last(N))), z)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        ends = [float(read(run(z + sign * EPS * direction, grid.times))) for sign in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * EPS), rel=1e-5)

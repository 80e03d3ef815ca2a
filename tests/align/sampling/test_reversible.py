"""The chain that is run backwards, on the trained embedded model in float32."""

import pytest
import torch

from align.registry import MODELS, build
from align.sampling import SamplingConfig, rollout
from samplers import Rng


class Seen:
    def __init__(self, inner, states):
        self.inner, self.states, self.schedule, self.kind = inner, states, inner.schedule, inner.kind

    def __call__(self, x_t, t, cond):
        self.states.append(x_t.detach()[:1])
        return self.inner(x_t, t, cond)


@pytest.mark.slow
def test_fifty_guided_steps_of_a_trained_model_are_found_again_and_their_gradient_is_the_stored_chains():
    model = build(MODELS, MODELS.look_up({"name": "sd", "checkpoint": "embedded:shapes-sd"}))
    drawn = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    found = {}
    for memory in ("checkpointed", "reversible"):
        config = SamplingConfig(num_steps=50, step_rule="leapfrog", guidance_scale=2.0, window="full", memory=memory)
        states: list[torch.Tensor] = []
        x_T = drawn.clone().requires_grad_()
        grad, seen = config.grad_policy(), Seen(model.denoiser(), states)
        end = rollout(config, model, seen, ["a red circle"], Rng(0, [0]), x_T=x_T, grad=grad).x0
        there, states[:] = list(states), []
        found[memory] = torch.autograd.grad(end.square().sum(), x_T)[0]
        if memory == "reversible":
            gaps = [float((a - b).abs().max()) for a, b in zip(there, states[::-1], strict=True)]
            assert len(gaps) == 50 and max(gaps) < 1e-5
    gap = (found["reversible"] - found["checkpointed"]).norm() / found["checkpointed"].norm()
    assert gap < 1e-3, gap

"""Groups on the tiny Stable Diffusion, for tests of the source and of the objectives that train on it."""

from typing import Any

import torch
from pair_toys import workplace

from align.data.groups import Groups, GroupsConfig
from align.policy.roles import Policy
from align.sampling import SamplingConfig
from rewards import Composite
from rewards.brightness import Brightness, BrightnessConfig

PROMPTS = ["a cat", "two", "x", "abc"]
SAMPLING = SamplingConfig(num_steps=4, guidance_scale=2.0, eta=1.0)


def bright() -> Composite:
    return Composite({"brightness": Brightness(BrightnessConfig())})


def groups(
    policy: Policy, wanted: Any = None, *, batch_size: int = 6, sampling: Any = SAMPLING, rewards: Any = None, **config
) -> Groups:
    """A prepared source of 2 prompts x 3 images a rollout, as many as an update takes."""
    source = Groups(GroupsConfig(**{"prompts": PROMPTS, "group_size": 3} | config), batch_size=batch_size, seed=0)
    around = workplace(policy, sampling=sampling, rewards=rewards or bright())
    object.__setattr__(around, "wanted", wanted)
    source.prepare(around)
    return source


def moved(policy: Policy, scale: float = 0.02) -> Policy:
    """The same policy, an update later."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.adapter.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return policy

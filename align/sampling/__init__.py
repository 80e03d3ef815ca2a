"""The sampling block of a recipe: grid, step rule, guidance and gradient window; and rollouts as it says."""

from align.sampling.block import OF_GRADIENTS, SamplingConfig
from align.sampling.rollout import begin, rollout

__all__ = ["OF_GRADIENTS", "SamplingConfig", "begin", "rollout"]

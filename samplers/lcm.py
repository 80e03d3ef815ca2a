"""LCM: trust x0 altogether and noise it again, x_s = alpha_s x0 + sigma_s z. One step to s = 0 is one-step generation.

Multistep consistency sampling, Song et al., arXiv 2303.01469, algorithm 1; Luo et al. (LCM), arXiv 2310.04378.
It is also how turbo models take more than one step. diffusers' LCMScheduler mixes in c_skip x_t, at most 1e-5 on its
own grids (t index >= 19); left out here.
"""

from torch import Tensor

from samplers.schedule import broadcast
from samplers.transition import Transition


def lcm(x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Transition:
    """One consistency step t -> s, deterministic only into s = 0. x0, eps: (B, ...); alpha, sigma: () or (B,)."""
    return Transition(broadcast(alpha_s, x0) * x0, sigma_s)

"""Direct-Align: an image noised by a known eps*, one step of the model, and the image found again with what is known.

    x_t = alpha_t x_0 + sigma_t eps*,    x_s = alpha_s x0_hat + sigma_s eps_hat        the model's step from t to s
    x_0' = (x_s - sigma_s eps*)/alpha_s

Only the step's share of the noise is the model's, so that x_0' is x_0 where the model is right, at every t: nothing is
blurred as a one-step prediction is, and early times can be trained. On a flow d x_0'/d v = (s - t)/(1 - s); on a table
it is (x_t - d eps_hat - (sigma_t - d) eps*)/alpha_t with d = alpha_t (sigma_t/alpha_t - sigma_s/alpha_s). s > t adds
noise (the inversion branch); s = 0 is the usual prediction. Formulas of arXiv 2509.06942, section 3.
"""

from typing import Any

from torch import Tensor

from samplers import Denoiser, add_noise, broadcast, call_with_graph, ddim, split


def recovered(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, cond: Any, *, recompute: bool = True
) -> Tensor:
    """x_0' with the graph of one network call, (B, ...). x0, eps: (B, ...), constants; t, s: (B,) float64 on the CPU,
    t in (0, 1), s in [0, 1); recompute: as in `samplers.call_with_graph`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t), denoiser.schedule(s)
    x_t = add_noise(denoiser.schedule, x0, eps, t)
    out = call_with_graph(denoiser, x_t, t.to(x_t.device), cond, recompute=recompute)
    x_s = ddim(*split(out, x_t, alpha_t, sigma_t, denoiser.kind), alpha_t, sigma_t, alpha_s, sigma_s).mean
    return (x_s - broadcast(sigma_s, eps) * eps) / broadcast(alpha_s, eps)

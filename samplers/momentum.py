"""Momentum solvers: Adams-Bashforth steps damped by a running average, heavy ball (HB) and generalised (GHVB).

With y = x/alpha, tau = sigma/alpha, f = eps on a VP table, and y = x, tau = t, f = eps - x0 on a flow, dy/dtau = f:

    HB_k      v <- (1 - b) v + b sum_j a_j f_{n-j}       y_s = y_t + h v               a: Adams-Bashforth of order k
    GHVB_k    v <- (1 - b) v + b f_n                     y_s = y_t + h sum_j g_j v_{n+1-j}

h = tau_s - tau_t, v starts at the first f, and the order grows with the history. Both are AB_k at b = 1, which at k = 1
is DDIM. Less b widens the region of stability, at large guidance and few steps, and costs accuracy: HB is of order 1
at any k, GHVB of order k where tau is evenly spaced. Wizadwongsa et al., arXiv 2307.11118, eq. 14 and 19; the sign of
(2 - b)/2b in the paper's printed eq. 19 must be minus, as in its eq. 18, for the row to sum to 1.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.ddim import ddim
from samplers.schedule import broadcast, on_a_flow
from samplers.transition import Transition

MOST = 5  # orders that are known
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    (1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720),
)
"""a_j by order, the newest first."""


def ghvb_coefficients(order: int, b: float) -> tuple[float, ...]:
    """g_j of GHVB, the newest first: they sum to 1, and are Adams-Bashforth's at b = 1. order in 1..5, b in (0, 1]."""
    over = {1: 1.0, 2: 2 * b, 3: 12 * b, 4: 24 * b, 5: 720 * b}[order]
    rows = {
        1: (1.0,),
        2: (2 + b, -(2 - b)),
        3: (18 + 5 * b, -(24 - 8 * b), 6 - b),
        4: (46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)),
        5: (1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b),
    }
    return tuple(value / over for value in rows[order])


class _Momentum:
    """The rule of one trajectory; `order` in 1..5 and `beta` in (0, 1] are its class's, set by `of`."""

    order: int = 2
    beta: float = 0.8

    def __init__(self) -> None:
        self.velocity: Tensor | None = None
        self.history: deque[Tensor] = deque(maxlen=self.order)

    @classmethod
    def of(cls, order: int, beta: float) -> "type[_Momentum]":
        """The rule with these settings, as `sample` takes it: made anew for each trajectory."""
        if not 1 <= order <= MOST or not 0 < beta <= 1:
            raise ValueError(f"order must be within 1..{MOST} and beta within (0, 1], not {order} and {beta}")
        return type(cls.__name__, (cls,), {"order": order, "beta": beta})

    def __call__(
        self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor
    ) -> Transition:
        """One step t -> s. x0, eps: (B, ...) predicted at t; alpha, sigma: ()."""
        first = not self.history
        if on_a_flow(alpha_t, sigma_t, alpha_s, sigma_s):  # y is x and f the velocity
            slope = self.slope(eps - x0)
            mean = broadcast(alpha_t, x0) * x0 + broadcast(sigma_t, x0) * eps
            mean = mean + broadcast(sigma_s - sigma_t, x0) * slope
        else:
            slope = self.slope(eps)
            if first:  # finite at alpha_t = 0 too
                return ddim(x0, eps, alpha_t, sigma_t, alpha_s, sigma_s)
            ratio_t, ratio_s = sigma_t / alpha_t, sigma_s / alpha_s
            mean = x0 + broadcast(ratio_t, x0) * eps + broadcast(ratio_s - ratio_t, x0) * slope
            mean = broadcast(alpha_s, x0) * mean
        return Transition(mean, torch.zeros_like(sigma_s))

    def slope(self, f: Tensor) -> Tensor:
        """What stands for f in an Euler step of tau."""
        raise NotImplementedError

    def _mix(self, value: Tensor) -> Tensor:
        v = value if self.velocity is None or self.beta == 1 else torch.lerp(self.velocity, value, self.beta)
        self.velocity = v
        return v

    def _combined(self, coefficients: Callable[[int], tuple[float, ...]]) -> Tensor:
        parts = zip(coefficients(len(self.history)), self.history, strict=True)
        return sum((c * f for c, f in parts), torch.zeros_like(self.history[0]))


class HeavyBall(_Momentum):
    """HB_k."""

    def slope(self, f: Tensor) -> Tensor:
        self.history.appendleft(f)
        return self._mix(self._combined(lambda order: ADAMS_BASHFORTH[order - 1]))


class GHVB(_Momentum):
    """GHVB_k, published as "GHVB 1.8" (order 2, beta 0.8) and "GHVB 3.8" (order 4, beta 0.8)."""

    def slope(self, f: Tensor) -> Tensor:
        self.history.appendleft(self._mix(f))
        return self._combined(lambda order: ghvb_coefficients(order, self.beta))

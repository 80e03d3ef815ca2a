"""Roles on one network: "train" is the network with its adapter, "reference" the same network without it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.policy.trainable import Adapter

ROLES = ("train", "reference")


@dataclass
class Calls:
    """Network calls, counted in rows of a batch (guidance makes two rows of one sample).

    A call with gradient costs 1 + 2 forward-equivalents (backward is twice a forward), a recomputation 1.
    """

    forward: int = 0
    recompute: int = 0
    backward: int = 0

    @property
    def forward_equivalents(self) -> int:
        return self.forward + self.recompute + 2 * self.backward

    def over_processes(self, accelerator: Accelerator) -> "Calls":
        """The sum of all processes' calls."""
        mine = torch.tensor([[self.forward, self.recompute, self.backward]], device=accelerator.device)
        return Calls(*accelerator.gather(mine).sum(0).tolist())  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, int]:
        return {"forward": self.forward, "recompute": self.recompute, "backward": self.backward}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.forward, self.recompute, self.backward = state["forward"], state["recompute"], state["backward"]


class Policy:
    """`model`'s network in its roles. Outside a call the adapter is on, so that "train" never switches anything."""

    def __init__(
        self,
        model: Any,
        adapter: Adapter | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.model = model
        self.adapter: Any = adapter  # None: both roles are the network as it is
        self.calls = Calls()
        self._autocast = autocast
        self._in_backward = False

    def role(self, name: str) -> "Role":
        """The denoiser of a role; it may be called within a checkpointed function, and within another role's graph."""
        if name not in ROLES:
            raise ValueError(f'there is no role "{name}". Known: {", ".join(ROLES)}.')
        return Role(self, name)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a network call."""
        return self._autocast()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls inside are not those of training: evaluation, panels, pictures."""
        calls, self.calls = self.calls, Calls()
        try:
            yield
        finally:
            self.calls = calls

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around a backward pass: calls inside it are recomputations."""
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False


class Role:
    """Denoiser: x_t (B, C, H, W), t (B,) or () in [0, 1], cond -> the raw network output, shaped as x_t."""

    def __init__(self, policy: Policy, name: str):
        self.policy = policy
        self.name = name
        self.schedule = policy.model.schedule
        self.kind = policy.model.kind
        self.rescale = getattr(policy.model, "rescale", None)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        policy = self.policy
        # Switched inside the call: a checkpointed call then switches again when it is recomputed.
        switch = policy.adapter.disabled() if self.name == "reference" and policy.adapter else nullcontext()
        if policy._in_backward:
            policy.calls.recompute += len(x_t)  # before the call: a recomputation is cut short by an exception
        else:
            policy.calls.forward += len(x_t)
        with switch, policy._autocast():
            out = policy.model.predict(policy.model.network, x_t, t, cond)
        if out.requires_grad and not policy._in_backward:
            policy.calls.backward += len(x_t)
        return out

"""Roles on one network: each a set of adapters with weights, switched inside the call.

    train = {default: 1}     reference = {}     and what an objective adds: old = {old: 1}, fake = {fake: 1}, ...
    result: what is judged, shown and handed over; as "train", or the adapter that the objective exports

LoRA is additive, so that a role of several adapters is their sum and needs no merge and no second network.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from align.policy import switch
from align.policy.branches import NEGATIVE, opposite
from align.policy.trainable import Adapter


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
    """`model`'s network in its roles. Outside a call its own adapter is on, so that "train" never switches anything."""

    def __init__(
        self,
        model: Any,
        adapter: Adapter | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        compiled: bool | Literal["prefix"] = False,
    ):
        self.model = model
        self.adapter: Any = adapter  # None: both roles are the network as it is
        self.adapters: dict[str, Any] = {} if adapter is None else {adapter.name: adapter}
        own = dict.fromkeys(self.adapters, 1.0)
        self.roles: dict[str, dict[str, float]] = {"train": own, "reference": {}, "result": own}
        self.opposer: Callable[[Role], Any] | None = None
        """In place of what the sampling block says: a role -> the denoiser of guidance's other branch, or None."""
        self.base: Callable[[Role], Any] | None = None
        """In place of the role "reference": a role -> the base beside it."""
        self.compiled = compiled
        """Which calls take the network's compiled code. True: all; prefix: training's own that carry no gradient."""
        self.calls = Calls()
        self._autocast = autocast
        self._in_backward = self._beside = False
        self._outside = self.roles["train"]
        self._layers: list[Any] = [] if adapter is None else list(adapter.layers)
        if adapter is not None and getattr(model.network, "is_gradient_checkpointing", False):
            model.network.enable_gradient_checkpointing(switch.checkpointed(self._eager))

    def role(self, name: str) -> "Role":
        """The denoiser of a role; it may be called within a checkpointed function, and within another role's graph."""
        if name not in self.roles:
            raise ValueError(f'there is no role "{name}". Known: {", ".join(self.roles)}.')
        return Role(self, name)

    def add(self, adapter: Any) -> None:
        """Takes a further adapter of the network in, which is a role by its own name."""
        self.adapters[adapter.name] = adapter
        known = {id(layer) for layer in self._layers}
        self._layers += [layer for layer in adapter.layers if id(layer) not in known]
        self.define(adapter.name, {adapter.name: 1.0})

    def define(self, role: str, weights: Mapping[str, float]) -> None:
        """Makes `role` the network with these adapters at these weights; {} is the base."""
        if unknown := weights.keys() - self.adapters.keys():
            raise ValueError(
                f'role "{role}": there is no adapter {", ".join(sorted(unknown))}. Known: {", ".join(self.adapters)}.'
            )
        self.roles[role] = dict(weights)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a network call."""
        return self._autocast()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls inside are not those of training: evaluation, panels, pictures."""
        calls, beside = self.calls, self._beside
        self.calls, self._beside = Calls(), True
        try:
            yield
        finally:
            self.calls, self._beside = calls, beside

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around a backward pass: calls inside it are recomputations."""
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False

    def stance(self, own: bool) -> AbstractContextManager[Any]:
        """The compiler's, for a call; `own`: nothing is switched for it, and so nothing is compiled anew."""
        free = own and not (torch.is_grad_enabled() or self._in_backward or self._beside)
        return nullcontext() if free else self._eager()

    def _eager(self) -> AbstractContextManager[Any]:
        """As every call that carries a gradient."""
        return torch.compiler.set_stance("force_eager") if self.compiled == "prefix" else nullcontext()


class Role:
    """Denoiser: x_t (B, C, H, W), t (B,) or () in [0, 1], cond -> the raw network output, shaped as x_t."""

    def __init__(self, policy: Policy, name: str, weights: Mapping[str, float] | None = None):
        self.policy = policy
        self.name = name
        self.weights = weights
        """In place of the role's own."""
        self.schedule = policy.model.schedule
        self.kind = policy.model.kind
        self.rescale = getattr(policy.model, "rescale", None)

    def beside(self, name: str) -> Any:
        """The denoiser of another role of the same network."""
        return self.policy.base(self) if self.policy.base is not None else Role(self.policy, name)

    def opposite(self, negative: Any) -> Any:
        """The denoiser of guidance's unprompted branch by a block's `negative`; None where it is this role's own. A run
        that trains the negative draws plainly by it and by the base: only its result is drawn against it."""
        policy = self.policy
        if policy.opposer is not None:
            return policy.opposer(self)
        own, trained = policy.roles[self.name], getattr(policy.adapter, "name", None)
        if negative is None or (trained == NEGATIVE and self.name != "result"):
            return None
        weights = opposite(own, negative.adapters)
        return None if weights is None else Role(policy, self.name, weights)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        policy = self.policy
        # Switched inside the call: a checkpointed call then switches again when it is recomputed.
        weights = policy.roles[self.name] if self.weights is None else self.weights
        own = weights == policy._outside
        role = nullcontext() if own else switch.entered(policy._layers, weights)
        if policy._in_backward:
            policy.calls.recompute += len(x_t)  # before the call: a recomputation is cut short by an exception
        else:
            policy.calls.forward += len(x_t)
        with role, policy._autocast(), policy.stance(own):
            out = policy.model.predict(policy.model.network, x_t, t, cond)
        if out.requires_grad and not policy._in_backward:
            policy.calls.backward += len(x_t)
        return out

"""The adapters that an objective asks for beside the one that a run trains: what each is, and how it is kept.

    objective.adapters = {"fake": Trained(optim={"lr": 2e-4}), "old": Snapshot(decay=0.5), "style": Frozen("me/style")}
    objective.roles = {"guide": {"default": 1.0, "style": 0.5}}      # more than each adapter by itself, if wanted

All of them lie on ONE network: a further role costs an adapter's memory and no network's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align.errors import UserError
from align.policy import mix
from align.policy.branches import MAIN, NEGATIVE
from align.policy.roles import Policy
from align.policy.trainable import Adapter, Trainable
from rewards._numerals import counted


@dataclass(frozen=True)
class Trained:
    """Something that learns too, with an optimiser of its own: an adapter, or `module` where it is given."""

    optim: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the recipe's `optim` block."""
    rate: float = 1.0
    """Its learning rate in units of the recipe's, where `optim` gives none."""
    max_grad_norm: float | str | None = "recipe"
    """Its clip; "recipe": as `train.max_grad_norm` says."""
    copy: str | None = None
    """Start as a copy of this adapter; None: as a fresh one, which is the base network."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the recipe's `adapter` block."""
    module: Trainable | None = None
    """A network of the objective's own in place of an adapter; it is no role."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of another adapter that follows it: hard, every `every` updates, or as a running average

        old <- decay old + (1 - decay) now

    with `decay` a number or a function of how many updates were done. Neither: the copy of the start stays."""

    of: str = "default"
    every: int | None = None
    decay: float | Callable[[int], float] | None = None
    draws: bool = False
    """Its images are trained on: it stays as it drew them until the last update on a rollout."""


@dataclass(frozen=True)
class Frozen:
    """An adapter from a file, folder or Hub id, of any rank, which is never trained."""

    source: str


Kind = Trained | Snapshot | Frozen


@dataclass(frozen=True)
class Attached:
    """A frozen adapter on the network."""

    name: str
    layers: list[Any]

    def parameters(self) -> list[Tensor]:
        return [p for layer in self.layers for n, p in layer.named_parameters() if f".{self.name}" in f".{n}"]


class Follower:
    """A snapshot at work: its adapter, the one it follows, and when."""

    def __init__(self, adapter: Adapter, followed: Adapter, kind: Snapshot):
        self.adapter, self.followed, self.kind = adapter, followed, kind

    def copy(self) -> None:
        """Becomes what is followed, bit for bit."""
        self._move(0.0)

    def advance(self, step: int, *, used_up: bool = True) -> None:
        """After update number `step` (the first is 1); used_up: none is left on the images that it trained on."""
        kind = self.kind
        if kind.draws and not used_up:
            return
        if kind.decay is not None:
            self._move(kind.decay(step) if callable(kind.decay) else kind.decay)
        elif kind.every is not None and step % kind.every == 0:
            self.copy()

    @torch.no_grad()
    def _move(self, decay: float) -> None:
        for old, now in zip(self.adapter.parameters(), self.followed.parameters(), strict=True):
            old.lerp_(now, 1 - decay) if decay else old.copy_(now)

    def state_dict(self) -> dict[str, Tensor]:
        return self.adapter.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.adapter.load_state_dict(state)


@dataclass(frozen=True)
class Cast:
    """All that an objective has asked for, on a policy: what is trained beside the run's own adapter, what follows."""

    trained: dict[str, tuple[Trainable, Trained]] = field(default_factory=dict)
    followers: dict[str, Follower] = field(default_factory=dict)
    frozen: dict[str, Attached] = field(default_factory=dict)

    def described(self) -> dict[str, str]:
        """{name: what it is}, for people."""
        said = {name: f"trained beside the run's own, {_size(one)}" for name, (one, _) in self.trained.items()}
        for name, follower in self.followers.items():
            kind = follower.kind
            law = "running average" if kind.decay is not None else f"copied every {counted(kind.every or 0, 'update')}"
            how = law if kind.decay is not None or kind.every is not None else "copied at the start"
            said[name] = f"snapshot of {kind.of}, {how}, {_size(follower.adapter)}"
        return said | {name: f"frozen, {_size(attached)}" for name, attached in self.frozen.items()}

    def held(self) -> int:
        """Numbers that are kept and not trained."""
        own = sum(p.numel() for f in self.followers.values() for p in f.adapter.parameters())
        return own + sum(p.numel() for attached in self.frozen.values() for p in attached.parameters())


def _size(adapter: Any) -> str:
    return f"{sum(p.numel() for p in adapter.parameters()):,} numbers"


def of_guidance(recipe: Any) -> dict[str, Frozen]:
    """What a recipe's sampling blocks need beside its own adapter: the negative of their guidance."""
    blocks = recipe.sampling, recipe.evaluate and recipe.evaluate.sampling
    sources = {how.negative.source for b in blocks if b is not None and (how := b.how).negative is not None} - {None}
    if len(sources) > 1:
        raise UserError(
            "evaluate.sampling.guidance.negative.source: is another than sampling's "
            f"({' and '.join(sorted(sources))}). Draw with one."
        )
    return {NEGATIVE: Frozen(*sources)} if sources else {}


def gather(policy: Policy, objective: Any, beside: Mapping[str, Kind] | None = None) -> Cast:
    """Puts the adapters that `objective` asks for, and those `beside`, on the policy's network; defines its roles."""
    cast = Cast()
    wanted: Mapping[str, Kind] = {**getattr(objective, "adapters", {}), **(beside or {})}
    for name, kind in wanted.items():
        if name in policy.adapters:
            raise ValueError(f'there is an adapter "{name}" already; call this one otherwise.')
        if isinstance(kind, Trained) and kind.module is not None:
            cast.trained[name] = kind.module, kind
        elif isinstance(kind, Frozen):
            own = policy.adapter
            cast.frozen[name] = Attached(name, mix.attach(own.network, own.component, kind.source, name))
            policy.add(cast.frozen[name])
        else:
            _beside(policy, cast, name, kind)
    for role, weights in getattr(objective, "roles", {}).items():
        policy.define(role, weights)
    name = getattr(objective, "exports", MAIN)
    policy.define("result", policy.roles["train"] if name == MAIN else {name: 1.0})
    if getattr(getattr(policy, "adapter", None), "name", None) == NEGATIVE:  # the base, drawn against what is trained
        policy.define("result", {})
    if name in cast.frozen:
        raise ValueError(f'exports="{name}", which is frozen: there would be nothing new in it.')
    return cast


def exported(policy: Policy, objective: Any) -> Any:
    """The Trainable that a run leaves behind: its own, or the adapter that `objective` exports instead."""
    if (name := getattr(objective, "exports", MAIN)) != MAIN:
        return policy.adapters[name]
    return getattr(objective, "trainable", policy.adapter)  # an objective may train something of its own


def _beside(policy: Policy, cast: Cast, name: str, kind: Trained | Snapshot) -> None:
    if isinstance(kind, Snapshot):
        followed = policy.adapters[kind.of]
        adapter = followed.beside(name, trained=False, changes={"init": None, "dropout": 0.0})
        cast.followers[name] = Follower(adapter, followed, kind)
        cast.followers[name].copy()
    else:
        adapter = policy.adapter.beside(name, trained=True, changes={"init": None, **kind.adapter})
        cast.trained[name] = adapter, kind
        if kind.copy is not None:
            Follower(adapter, policy.adapters[kind.copy], Snapshot(kind.copy)).copy()
    policy.add(adapter)

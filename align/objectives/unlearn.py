"""Unlearning: a concept's prompts are taken to an anchor's images, or away from the concept, and the rest is preserved.

    anchor        |out(c*) - out_ref(c_a)|^2                                 at x_t, images of c_a with noise
    negative      |out(c*) - [out_ref() - g (out_ref(c*) - out_ref())]|^2    at x_t, a state on the policy's way to c*
    adversarial   BCE(D(x0_hat(c*)), anchor), D: x0_hat_ref(c_a) against x0_hat(c*); x_t as for anchor (_critic.py)
    preserving    |out(c') - out_ref(c')|^2, or u in its place               at x_t, the base's images of c' with noise

c*: a prompt with the concept in it, c_a: the same with the anchor in its place, c': a prompt without. Concept ablation:
Kumari et al., arXiv 2303.13516. negative: Gandikota et al. (ESD), arXiv 2303.07345, as LECO trains it, without images.
adversarial is concept domain correction: Wu et al. (DoCo), arXiv 2405.15304. `surgery`: the preserving loss is not
added, but the update does not raise it to first order, over all parameters together (align/training/surgery.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.errors import UserError
from align.models._base import device_of
from align.objectives._base import Loss, Move, Parts
from align.objectives._critic import Critic
from align.objectives._reward import Gather
from align.policy.cast import Trained
from align.policy.roles import Policy
from align.policy.trainable import Module
from align.registry import ComponentConfig
from align.sampling import rollout
from samplers import Rng, add_noise, call_with_graph, generator, split, target

Words = Annotated[str, Field(min_length=1)]
PATIENCE = 10  # updates without a single prompt of the concept


class UnlearnConfig(ComponentConfig):
    """What is unlearnt, in whose favour, and what holds the rest."""

    name: Literal["unlearn"] = "unlearn"
    concepts: dict[Words, Words] = Field(min_length=1)
    """{concept: anchor}, as the words stand in the prompts (with their plurals): {star: circle, stars: circles}.
    Prompts of `data` with such a word are unlearnt, those without are preserved."""
    target: Literal["anchor", "negative", "adversarial"] = "anchor"
    """To the anchor's prediction; away from the concept's own, without images; or past a critic of the two."""
    strength: float = Field(default=1.0, ge=0)
    """target=negative: g, how far past the prediction without a prompt."""
    preserve: float = Field(default=1.0, ge=0)
    """Weight of the preserving loss; with surgery only 0 matters, which leaves it out."""
    preserve_to: Literal["output", "noise"] = "output"
    """What preserved rows are held to: the base's own output, from which nothing pulls while nothing has moved; or the
    target u that the noise gives, as published, which trains on the base's images too and adds the noise's variance."""
    surgery: Literal["none", "pcgrad"] = "none"
    """pcgrad: the preserving loss holds the update's direction in place of being added."""
    times: tuple[float, float] = (0.02, 0.98)
    """Between which times t, 1 is pure noise, images are noised."""
    critic_lr: float = Field(default=1e-4, gt=0)
    """target=adversarial: the critic's learning rate."""
    warmup: int = Field(default=0, ge=0)
    """target=adversarial: first updates in which the critic alone learns (DoCo: 1,000 of 2,000)."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        low, high = self.times
        if not 0 < low <= high < 1:
            yield ".times", f"are {[low, high]}. Set 0 < low <= high < 1."
        train = recipe.get("train")
        if self.target == "adversarial" and train is not None and self.warmup >= train.num_updates:
            yield ".warmup", f"is {self.warmup} of {train.num_updates} updates: nothing is unlearnt. Lower it."
        prompts = getattr(recipe.get("data"), "prompts", None)
        if isinstance(prompts, list) and not any(self.replaced(prompt) for prompt in prompts):
            yield ".concepts", f"{', '.join(self.concepts)}: stands in none of data.prompts. Give prompts that have it."
        sampling = recipe.get("sampling")
        if self.target == "negative" and sampling is not None and sampling.num_calls < 2:
            yield "sampling.num_steps", "is 1, and there is no state on the way. Set it to 2 or more."

    def replaced(self, prompt: str) -> str | None:
        """The prompt with every concept's anchor in its place; None where it has none of them."""
        found = prompt
        for concept, anchor in self.concepts.items():
            found = re.sub(rf"\b{re.escape(concept)}\b", lambda _, to=anchor: to, found, flags=re.IGNORECASE)
        return None if found == prompt else found


class Rows(NamedTuple):
    """Rows of a batch at their times."""

    prompts: list[str]
    anchors: list[str]
    x0: Tensor
    """The base's images of the anchors, (b, ...); zeros where none are drawn."""
    eps: Tensor
    x_t: Tensor
    t: Tensor
    """(b,) float64, on the CPU."""


class Unlearn:
    """The objective: prompts with and without the concept in."""

    Config = UnlearnConfig

    def __init__(self, config: UnlearnConfig, parts: Parts):
        self.config, self.model, self.sampling, self.seed = config, parts.model, parts.sampling, parts.seed
        self.adapters: dict[str, Trained] = {}
        self._seen: int = 0
        self._quiet: int = 0
        if config.target == "adversarial":
            shape = self.model.latent_shape(self.sampling.image_size)
            device = device_of(self.model.network)
            self.critic = Critic(shape, generator(self.seed, "critic", 0).initial_seed()).to(device)
            module = Module(self.critic, list(self.critic.parameters()), self.critic.save)
            optim = {"lr": config.critic_lr, "weight_decay": 0.0}
            self.adapters["critic"] = Trained(optim=optim, max_grad_norm=None, module=module)

    def moves(self, step: int) -> list[Move]:
        """The adapter, then the critic where there is one."""
        own = [] if step < self.config.warmup and self.adapters else [Move("default", self)]
        return own + [Move(name, self.judge) for name in self.adapters]

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        concept, others = self._split(batch.prompts)
        self._seen += len(concept)
        device = device_of(self.model.network)
        nothing = torch.stack([p.sum() for p in policy.adapter.parameters()]).sum() * 0  # a part may have no rows
        losses, kept = torch.zeros(len(batch), device=device) + nothing, torch.zeros(len(batch), device=device)
        said: dict[str, Tensor] = {}
        if concept:
            missed = self._missed(policy, self._rows(policy, batch, concept))
            losses = losses.index_put((torch.tensor(concept, device=device),), missed)
            said["unlearning"] = missed.detach()
        if others and self.config.preserve:
            rows = self._rows(policy, batch, others)
            moved = self._out(policy, rows, rows.prompts) - self._held(policy, rows)
            error = moved.float().square().flatten(1).mean(1)
            kept = kept.index_put((torch.tensor(others, device=device),), error)
            said["preserving"] = error.detach()
        if self.config.surgery == "none":
            return Loss(losses + self.config.preserve * kept, torch.ones_like(losses), said)
        return Loss(losses, torch.ones_like(losses), said, kept)

    def judge(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        """The critic's move."""
        concept, _ = self._split(batch.prompts)
        device = device_of(self.model.network)
        nothing = torch.stack([p.sum() for p in self.critic.parameters()]).sum() * 0
        losses, weight = torch.zeros(len(batch), device=device) + nothing, torch.zeros(len(batch), device=device)
        if not concept:
            return Loss(losses, weight, {})
        rows, places = self._rows(policy, batch, concept), (torch.tensor(concept, device=device),)
        with torch.no_grad():
            real, fake = (self._x0_hat(policy, rows, *one) for one in (("reference", rows.anchors), ("train", None)))
        found = self.critic.says(real, concept=False) + self.critic.says(fake, concept=True)
        ones = torch.ones(len(concept), device=device)
        return Loss(losses.index_put(places, found), weight.index_put(places, ones), {"told_apart": found.detach()})

    def after_update(self, gather: Gather) -> None:
        """Ends a run in which the concept never comes."""
        seen, self._seen = int(gather(torch.tensor([self._seen])).sum()), 0
        self._quiet = 0 if seen else self._quiet + 1
        if self._quiet >= PATIENCE:
            raise UserError(
                f"objective.concepts={', '.join(self.config.concepts)}: stood in no prompt of {PATIENCE} updates, and "
                "nothing is unlearnt. Write the words as they stand in data.prompts."
            )

    def _split(self, prompts: Sequence[str]) -> tuple[list[int], list[int]]:
        has = [self.config.replaced(prompt) is not None for prompt in prompts]
        return [i for i, flag in enumerate(has) if flag], [i for i, flag in enumerate(has) if not flag]

    @torch.no_grad()
    def _rows(self, policy: Policy, batch: Any, chosen: Sequence[int]) -> Rows:
        prompts = [batch.prompts[i] for i in chosen]
        anchors = [self.config.replaced(prompt) or prompt for prompt in prompts]
        rng = Rng(self.seed, [batch.indices[i] for i in chosen], batch.step)
        if self.config.target == "negative" and prompts != anchors:  # a state on the policy's own way to the concept
            times = self.sampling.grid(self.model).times
            calls = int(torch.randint(1, len(times) - 1, (), generator=rng.shared("calls")))
            x_t = rollout(self.sampling, self.model, policy.role("train"), prompts, rng, num_calls=calls).x0
            return Rows(prompts, anchors, torch.zeros_like(x_t), x_t, x_t, times[calls].expand(len(prompts)))
        x0 = rollout(self.sampling, self.model, policy.role("reference"), anchors, rng).x0
        low, high = self.config.times
        drawn = [generator(self.seed, "unlearn/t", index) for index in rng.indices]
        u = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in drawn])
        t, eps = low + u * (high - low), rng.normal("unlearn", x0)
        return Rows(prompts, anchors, x0, eps, add_noise(self.model.schedule, x0, eps, t), t)

    def _out(self, policy: Policy, rows: Rows, prompts: Sequence[str], role: str = "train") -> Tensor:
        """A role's raw output, (b, ...); with gradient where gradients are on and it is the trained one."""
        t, cond = rows.t.to(rows.x_t.device), self.model.text.encode(prompts)
        if role == "train" and torch.is_grad_enabled():
            recompute = self.sampling.checkpoint_steps
            return call_with_graph(policy.role(role), rows.x_t, t, cond, recompute=recompute)
        with torch.no_grad():
            return policy.role(role)(rows.x_t, t, cond)

    def _x0_hat(self, policy: Policy, rows: Rows, role: str, prompts: Sequence[str] | None) -> Tensor:
        out = self._out(policy, rows, rows.prompts if prompts is None else prompts, role)
        alpha_t, sigma_t = self.model.schedule(rows.t)
        return split(out, rows.x_t, alpha_t, sigma_t, self.model.kind)[0]

    def _held(self, policy: Policy, rows: Rows) -> Tensor:
        """What preserved rows are to say, (b, ...), without gradient."""
        if self.config.preserve_to == "output":
            return self._out(policy, rows, rows.prompts, "reference")
        alpha_t, sigma_t = self.model.schedule(rows.t)
        return target(rows.x0, rows.eps, alpha_t, sigma_t, self.model.kind)

    def _missed(self, policy: Policy, rows: Rows) -> Tensor:
        """(b,): how far the concept's rows are from where they are to go."""
        if self.config.target == "adversarial":
            return self.critic.says(self._x0_hat(policy, rows, "train", None), concept=False)
        if self.config.target == "anchor":
            goal = self._out(policy, rows, rows.anchors, "reference")
        else:
            own, none = (self._out(policy, rows, p, "reference") for p in (rows.prompts, [""] * len(rows.prompts)))
            goal = none - self.config.strength * (own - none)
        return (self._out(policy, rows, rows.prompts) - goal).float().square().flatten(1).mean(1)

"""SRPO: what a word adds to a reward, differentiated at an image that is noised and found again (Direct-Align).

    R = r(x_0', "word. prompt") - r(x_0', "other word. prompt"),     x_0': _direct.py, at one high noise level
    L = -R where the model's step takes noise away,  +R where it adds noise (the inversion branch)

"SRPO", arXiv 2509.06942. Of a reward that is a cosine of features R is f(image) . (C_word - C_other): what both prompts
share, and with it most of what can be hacked, falls out. The two branches move the output alike and the image in
opposite ways. `mix` = k is the paper's other form, (1 - k) r(other) + k r(word). Written from the formulas; the
authors' code, which is for academic use only, was not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.errors import UserError
from align.objectives._base import Loss, Parts
from align.objectives._direct import recovered
from align.objectives._reward import Gather, RewardObjective
from align.policy.roles import Policy
from align.registry import ComponentConfig
from align.sampling import rollout
from rewards._latents import Undecoded
from samplers import Rng, generator
from samplers.guidance import CfgGrad

Word = Annotated[str, Field(min_length=1)]


class SRPOConfig(ComponentConfig):
    """Which words, at which noise."""

    needs_gradient: ClassVar[bool] = True
    decodes: ClassVar[bool] = True
    name: Literal["srpo"] = "srpo"
    words: tuple[tuple[Word, Word], ...] = Field(min_length=1)
    """Control words, [[what images should become, what they should not], ...]: each goes before the prompt, as in
    "word. prompt", and each image draws one pair."""
    mix: float | None = Field(default=None, ge=0)
    """k of (1 - k) r(other) + k r(word), like guidance: 1 is the word's reward alone. Default: the difference."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the loss."""
    times: tuple[float, float] = (0.75, 0.96)
    """Between which times t, 1 is pure noise, images are noised; above 0.99 structure suffers, late times change
    colours."""
    step: float = Field(default=0.02, gt=0, lt=1)
    """|t - s|, the length of the model's step."""
    inversion: float = Field(default=0.5, ge=0, le=1)
    """Share of the images that take the inversion branch; without it users report oily images."""
    noise: Literal["own", "fresh"] = "own"
    """eps*: the noise that the image was drawn from, or another one."""
    cfg_grad: CfgGrad = "both"
    """Branches of a guided output that carry gradient."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from recipe["sampling"].alone() if recipe.get("sampling") else ()
        low, high = self.times
        upper = 1 - self.step if self.inversion else 1
        if not self.step <= low <= high < upper:
            yield (
                ".times",
                f"are {[low, high]}, and a step of {self.step:g} from them must stay within [0, 1). Set {self.step:g} "
                f"<= low <= high < {upper:g}.",
            )


class Draw(NamedTuple):
    """What the rows of a batch draw, each from its own index."""

    t: Tensor
    """(B,) float64"""
    s: Tensor
    sign: Tensor
    """(B,): 1, or -1 in the inversion branch."""
    words: list[tuple[str, str]]


class SRPO(RewardObjective):
    """The objective: prompts in, sampled without gradient, noised, one network call with gradient."""

    Config = SRPOConfig

    def __init__(self, config: SRPOConfig, parts: Parts):
        super().__init__(config, parts)
        self._apart: list[Tensor] = []

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        role, text, rng = policy.role("train"), self.model.text, Rng(self.seed, batch.indices, batch.step)
        with torch.no_grad():
            x0 = rollout(self.sampling, self.model, role, batch.prompts, rng).x0
        drawn = self.drawn(batch.indices)
        eps = rng.normal("x_T" if self.config.noise == "own" else "known", x0)
        denoiser = self.sampling.guided(role, self.sampling.unprompted(text), self.config.cfg_grad)
        recompute, cond = self.sampling.checkpoint_steps, text.encode(batch.prompts)
        again = recovered(denoiser, x0, eps, drawn.t, drawn.s, cond, recompute=recompute)
        relative, metrics = self.relative(self.undecoded(again), batch.prompts, drawn.words)
        losses = -self.config.scale * drawn.sign.to(relative) * relative
        metrics["inverted"] = (drawn.sign < 0).float()
        metrics["moved"] = (again.detach() - x0).square().flatten(1).mean(1)
        return Loss(losses, torch.ones_like(losses), metrics)

    def drawn(self, indices: Sequence[int]) -> Draw:
        """By (seed, sample index) alone: the cut of a batch changes nothing."""
        config = self.config
        times, steps, words = [], [], []
        for index in indices:
            u, branch, word = torch.rand(3, generator=generator(self.seed, "srpo", index), dtype=torch.float64).tolist()
            low, high = config.times
            sign = -1 if branch < config.inversion else 1
            times.append(low + u * (high - low))
            steps.append(sign)
            words.append(config.words[int(word * len(config.words))])
        t, sign = torch.tensor(times, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)
        return Draw(t, t - sign * config.step, sign, words)

    def relative(
        self, images: Tensor | Undecoded, prompts: Sequence[str], words: Sequence[tuple[str, str]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(R (B,) with the graph of `images`, metrics). images: (B, 3, H, W) in [0, 1], or latents still."""
        sides = [[f"{pair[side]}. {prompt}" for pair, prompt in zip(words, prompts, strict=True)] for side in (0, 1)]
        toward, away = (self.rewards.score(images, side) for side in sides)
        self._scores.append(torch.stack(list(toward.terms.values()), 1))
        self._apart.append((toward.total - away.total).detach().abs().max())
        k = self.config.mix
        relative = toward.total - away.total if k is None else (1 - k) * away.total + k * toward.total
        said = {f"reward/{label}": scores for label, scores in toward.terms.items()}
        said |= {f"relative/{label}": scores - away.terms[label] for label, scores in toward.terms.items()}
        return relative, said | {"reward/total": toward.total.detach()} | toward.metrics

    def after_update(self, gather: Gather) -> None:
        """Refuses rewards for which the words are all the same: nothing would be learnt, and nothing said."""
        super().after_update(gather)
        apart, self._apart = self._apart, []
        seen = gather(torch.stack(apart) if apart else torch.empty(0))
        if len(seen) and not seen.any():
            word, other = self.config.words[0]
            raise UserError(
                f'rewards: with "{word}" and with "{other}" before the prompt every image scores the same, so that '
                "there is no gradient. Use a reward that reads the prompt, such as clip, pickscore or hpsv2."
            )

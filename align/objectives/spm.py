"""Train a step-aware preference model: which of two images people prefer, told from what is predicted of them at t.

    x0_hat(y) = the base model's guided prediction at y_t,   y_t = alpha_t y + sigma_t eps,   a pair has one t and eps
    L = cross-entropy of sigmoid(score(x0_hat(w), t) - score(x0_hat(l), t)) with 1, or 1/2 for a tie

Liang et al., SPO, arXiv 2406.04314, section 3.2; Bradley & Terry 1952. The model is align/models/_step_aware.py's, a
CLIP at the start, and the judge that `data: {name: rollouts, spm: FOLDER}` takes. Ties are trained on where
`data.ties=keep`. Nothing of the diffusion model is trained: an adapter is neither changed nor written.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from align.models._base import device_of
from align.models._step_aware import StepAwareClip
from align.objectives._base import Loss, Parts
from align.objectives._losses import bradley_terry
from align.objectives._preference import NUM_BINS, TimesConfig, noised
from align.policy.roles import Policy
from align.policy.trainable import Module
from align.registry import ComponentConfig
from samplers import Rng, split


class SPMConfig(ComponentConfig):
    """What the preference model starts from."""

    unplanned: ClassVar[str] = "spm trains a CLIP beside the model, and is not rehearsed"
    name: Literal["spm"] = "spm"
    clip: str
    """A CLIP, or a preference model of its kind (PickScore), in transformers' format: a folder or a Hub id."""
    times: TimesConfig = TimesConfig()
    """At which times pairs are noised."""
    clean: float = Field(default=0.05, ge=0, le=1)
    """Share of pairs that are shown as they are, at t = 0: so SPO's last step is judged."""

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        data = recipe.get("data")
        if data is not None and not hasattr(data, "pairs"):
            yield "data", "holds no pairs of images. Use `data: {name: preferences, pairs: FOLDER}`."
        yield from recipe["sampling"].alone() if recipe.get("sampling") else ()
        if recipe.get("sampling") and recipe["sampling"].negative_prompt:
            yield "sampling.negative_prompt", "is set, and spm guides by the pairs' empty prompt. Remove it."


class SPM:
    """The objective: preference pairs in; what it trains is its own."""

    Config = SPMConfig

    def __init__(self, config: SPMConfig, parts: Parts):
        self.config, self.model, self.sampling, self.seed = config, parts.model, parts.sampling, parts.seed
        device = device_of(parts.model.network)
        self.judge = StepAwareClip(config.clip, seed=parts.seed).to(device)
        self.trainable = Module(self.judge, self.judge.trained(), self.judge.save)

    def __call__(self, policy: Policy, batch: Any, context: Any = None) -> Loss:
        pairs, rng = batch.load(), Rng(self.seed, batch.indices, batch.step)
        mean = pairs.winner.mean
        vae_noise, eps = rng.normal("vae", mean), rng.normal("eps", mean)
        x0 = pairs.winner.sample(vae_noise), pairs.loser.sample(vae_noise)
        t = self.config.times.draw(rng, self.model.schedule, mean)
        uniform = torch.special.ndtr(rng.normal("clean", t[:, None])[:, 0])
        clean = uniform < self.config.clean
        with torch.no_grad():
            uncond_w, uncond_l = pairs.conds([True] * len(batch))
            denoiser = self.sampling.guided(policy.role("reference"), uncond_w.cat(uncond_l))
            x_t, both = noised(denoiser.schedule, x0, (eps, eps), t), torch.cat([t, t])
            cond_w, cond_l = pairs.conds([False] * len(batch))
            out = denoiser(x_t, both, cond_w.cat(cond_l))
            alpha, sigma = denoiser.schedule(both)
            predicted, _ = split(out, x_t, alpha, sigma, denoiser.kind)
            whole = torch.cat([clean, clean]).view(-1, *[1] * (mean.ndim - 1))
            images = self.model.codec.decode(torch.where(whole, torch.cat(x0), predicted))
        shown = torch.where(clean, torch.zeros_like(t), t)
        scores = self.judge(images, [*batch.prompts, *batch.prompts], torch.cat([shown, shown]))
        winner, loser = scores.chunk(2)
        losses = bradley_terry(winner, loser, torch.tensor([0.5 if tie else 1.0 for tie in batch.ties]).to(scores))
        decided = [i for i, tie in enumerate(batch.ties) if not tie]
        margin = (winner - loser).detach()[decided]
        right = (margin > 0).double() + 0.5 * (margin == 0).double()
        said = {"accuracy": right, "margin": margin}
        bins = (shown * NUM_BINS).long().clamp(max=NUM_BINS - 1)[decided]
        said |= {f"accuracy/t{i}": right[bins == i] for i in range(NUM_BINS)}
        return Loss(losses, torch.ones_like(losses), said)

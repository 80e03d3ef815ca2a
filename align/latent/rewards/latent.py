"""A reward that reads noisy latents: features of the base's own network under a step-aware head; no image is decoded.

    r(x_0) = mean over n fixed noises of  head( features(alpha_t x_0 + sigma_t eps_k, t, prompt), t )

DiNa-LRM (Liu et al. 2026, arXiv 2602.11146) on Stable Diffusion 3.5 medium, with t = 0.4 as its example has it. Its own
code draws eps anew at each call; here the noises are a few fixed ones, alike for every image, so that a score depends
on the image alone. Where images come as pixels they are encoded first, and where other models' latents come, decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from align.errors import UserError
from align.latent.features import Features
from align.latent.head import Head
from align.latent.weights import Description, load_head, merge_lora
from align.models._identity import weights as digest
from align.registry import MODELS, ComponentConfig, build
from rewards._base import Reward
from rewards._card import UNSTATED, Card
from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._memory import within_memory
from samplers import add_noise, noise

PUBLISHED = "liuhuohuo/DiNa-LRM-SD35M-12layers"


class LatentConfig(RewardConfig):
    reads_latents: ClassVar[bool] = True

    name: Literal["latent"] = "latent"
    model: str = PUBLISHED
    """A folder or Hub id in DiNa-LRM's layout: config.json, and the head's weights in checkpoint/."""
    base: Annotated[SerializeAsAny[ComponentConfig], MODELS] | None = None
    """The diffusion model whose features are read, with its settings; default: the one that config.json names. It is
    loaded beside the one that is trained, whose latents must be of the same autoencoder."""
    at: float = Field(default=0.4, gt=0, lt=1)
    """t, the level of noise at which latents are read."""
    num_noises: int = Field(default=1, ge=1)
    """n."""

    card = Card(
        measures="Which of two images of a prompt people would prefer, read in their noisy latents (HPDv3).",
        range="about -10 to 10 in use, by the README's scaling (r + 10) / 10",
        size="6.9 B in bf16 (half of SD3.5 medium, and its text encoders)",
        hacking="Not measured. By its form: what the base's features at one level of noise do not tell, goes unseen.",
        partner="hpsv2",
        licences={"the head": UNSTATED, "stabilityai/stable-diffusion-3.5-medium": "stabilityai-ai-community"},
    )

    def licences(self) -> dict[str, str]:
        return {} if self.model.startswith("embedded:") else super().licences()

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if self.base is not None:
            for path, text in self.base.conflicts(recipe):
                if path.startswith("."):
                    yield f".base{path}", text


class Latent(Reward):
    """What the head reads in the noisy latents of an image; higher is preferred."""

    Config = LatentConfig
    config: LatentConfig

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        said = Description.read(config.model)
        base = config.base or MODELS.look_up({"name": "auto", "checkpoint": said.base})
        bundle: Any = build(MODELS, base)
        self.features: Any = Features(bundle, said.image, said.text)
        if said.lora:
            merge_lora(self.features.network, said)
        told = {"image": len(said.image), "text": len(said.text), "embedding": self.features.embedding}
        head = Head(self.features.tokens, **told, **said.head)
        load_head(head, said)
        self.head: Any = head
        self.parts: Any = nn.ModuleDict({n: m for n, m in bundle.components().items() if m is not bundle.network})
        self.bundle = bundle
        self._known: tuple[Any, bool] | None = None

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        try:
            self.bundle.latent_shape((images.shape[2], images.shape[3]))
        except UserError as error:
            raise RewardError(f"reward {self.name}: {str(error).replace('sampling.image_size', 'images')}") from None
        return self._noised(self.bundle.codec.encode(images).mean, prompts)

    def of_latents(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Clean latents (B, C, h, w) of a model that this reward `knows` -> (B,)."""
        if self.config.memory_gib is None and not self.config.offload:
            return self._noised(latents, prompts)
        return within_memory(self, self._noised, latents, prompts)

    def at(self, x_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """Noisy latents x_t (B, C, h, w) at t (B,) in [0, 1] -> (B,): what is read, as it stands."""
        found = self.features(x_t, t, self.bundle.text.encode(prompts))
        return self.head(
            [one.float() for one in found.image], [one.float() for one in found.text], found.embedding.float()
        )

    def knows(self, codec: Any) -> bool:
        """Whether latents of this autoencoder are the base's: weights, scale and shift are the same."""
        own = self.bundle.codec
        if self._known is None or self._known[0] is not codec:
            alike = type(codec) is type(own) and all(
                torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                for a, b in ((codec.scale, own.scale), (codec.shift, own.shift))
            )
            self._known = codec, alike and digest(codec.vae) == digest(own.vae)
        return self._known[1]

    def _noised(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        t = torch.full((len(x0),), self.config.at, dtype=torch.float64, device=x0.device)
        scores = []
        for k in range(self.config.num_noises):
            eps = noise(0, "latent", [k], x0.shape[1:]).to(x0)
            scores.append(self.at(add_noise(self.bundle.schedule, x0, eps.expand_as(x0), t), t, prompts))
        return torch.stack(scores).mean(0)

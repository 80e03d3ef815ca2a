"""MPS (multi-dimensional preference score): a CLIP ViT-H/14 whose prompt, masked by a list of criteria, is asked for
by the image's tokens in four layers of cross-attention.

    r = exp(scale) w . n(z_0),   z = Cross(image tokens, prompt tokens, mask)
    mask_j = 0 where max_k <t_j, c_k> exceeds `threshold` times its largest over j, else -inf

w is the prompt's unit EOS embedding, t_j and c_k the projected tokens of prompt and criteria. Zhang et al. 2024,
arXiv:2405.14705; weights https://github.com/Kwai-Kolors/MPS. The published evaluation takes 0.3 as the threshold, the
README's example 0.01. There the largest value is that of the whole batch; here it is the prompt's own, so that a score
does not depend on its neighbours: the published one for a batch of one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._base import Reward
from rewards._card import UNSTATED, Card
from rewards._clip import single
from rewards._config import RewardConfig
from rewards._cross import CrossModel
from rewards._errors import RewardError
from rewards._load import CONSTANTS, given_file, hf_preprocess, load_strictly, load_tokenizer, not_loaded
from rewards._text import PromptCache
from rewards._unpickle import read_module

CRITERIA = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)


class MPSConfig(RewardConfig):
    name: Literal["mps"] = "mps"
    weights: str | None = None
    """The file of the weights, MPS_overall_checkpoint.pth, linked in its authors' README (Google Drive); needed."""
    model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Where the CLIP's config, tokenizer and preprocessing are: a folder or a Hub id in HF's format."""
    criteria: str = CRITERIA
    """What the prompt is masked by."""
    threshold: float = Field(0.3, ge=0, lt=1)
    """Share of its largest similarity with the criteria from which on a token of the prompt is seen."""
    layers: int = Field(4, ge=1)
    """Of the cross-attention."""
    heads: int = Field(16, ge=1)
    """Of the cross-attention."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the image tower; projection, cross-attention and cosine are always computed in float32."""

    card = Card(
        measures="What people prefer overall, by criteria: looks, detail, match.",
        range="-100 to 100, 5 to 15 in use",
        size="1060 M (ViT-H/14 and four cross-attention layers)",
        hacking="Busy, sharp, evenly lit scenes with much small detail.",
        partner="hpsv2",
        licences={"Kwai-Kolors/MPS": UNSTATED},
    )


class MPS(Reward):
    """Logit of preference; higher is preferred."""

    Config = MPSConfig

    def __init__(self, config: MPSConfig):
        super().__init__(config)
        if config.weights is None:
            raise RewardError(
                "reward mps: its weights are on no hub: get MPS_overall_checkpoint.pth, linked in the README of "
                "https://github.com/Kwai-Kolors/MPS, and set weights to the file."
            )
        file = given_file("mps", "weights", config.weights)
        network = Network(config)
        state = {key: value for key, value in read_module(file).items() if not key.endswith(CONSTANTS)}
        load_strictly(network, state, file)
        self.clip, self.cross = network.model, network.cross_model
        self.dtype = getattr(torch, config.dtype)
        self.clip.vision_model.to(self.dtype)
        self.tokenizer = load_tokenizer(config.model)
        self.preprocess = hf_preprocess(config.model)
        self.criteria, self.threshold = config.criteria, config.threshold
        self._cache = PromptCache(self._tokens)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        states = self.clip.vision_model(pixel_values=self.preprocess(images).to(self.dtype)).last_hidden_state
        text = self._cache(prompts, images.device)
        summary, tokens = text[:, 0], text[:, 1:]
        attended = self.cross(self.clip.visual_projection(single(states)), tokens, self._mask(tokens))[:, 0]
        return self.clip.logit_scale.exp() * (normalize(summary, dim=-1) * normalize(attended, dim=-1)).sum(-1)

    def _mask(self, tokens: Tensor) -> Tensor:
        """Prompt tokens (B, n, D) -> (B, 1, n), 0 where a token is seen and -inf elsewhere."""
        criteria = self._cache([self.criteria], tokens.device)[0, 1:]
        nearest = (tokens @ criteria.T).amax(-1)
        hidden = nearest / nearest.amax(-1, keepdim=True) <= self.threshold
        return torch.zeros_like(nearest).masked_fill(hidden, float("-inf"))[:, None]

    def _tokens(self, text: str, device: torch.device) -> Tensor:
        """(1 + n, D): the projected EOS state, then that of every token, padding included."""
        ids = self.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=self.clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )["input_ids"].to(device)
        out = self.clip.text_model(input_ids=ids)  # without a mask, as published: the tower is causal
        return self.clip.text_projection(torch.cat([out.pooler_output[:, None], out.last_hidden_state], 1))[0]


class Network(nn.Module):
    """CLIP and the cross-attention, with the names of the published file."""

    def __init__(self, config: MPSConfig):
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        try:
            architecture: Any = CLIPConfig.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise RewardError(not_loaded(config.model, error)) from error
        self.model: Any = CLIPModel(architecture)
        self.cross_model = CrossModel(architecture.projection_dim, config.layers, config.heads)

"""BLIP score: how well an image matches its prompt, by contrast (ITC) or by looking at both together (ITM).

    itc: r = u . w               cosine of projected CLS states, each tower by itself
    itm: r = P(match) = softmax(W h)_1,  h = CLS state of the prompt read while looking at the image

Li et al. 2022, arXiv:2201.12086; checkpoints https://huggingface.co/Salesforce/blip-itm-large-coco (BSD-3-Clause). The
probability of ITM saturates: for training, `itm_logit` is the log-odds of the same.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._base import Reward
from rewards._blip import BlipTowers, blip_large, load_original
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._load import given_file, hf_preprocess, load_hf, load_tokenizer
from rewards._text import PromptCache

PRETRAINING = (
    "visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.", "text_decoder.",
    "image_queue", "text_queue", "queue_ptr", "ptr_queue", "idx_queue", "temp",
)  # fmt: skip
"""Parts of BLIP's own files that only its training used."""


class BlipConfig(RewardConfig):
    name: Literal["blip"] = "blip"
    model: str = "Salesforce/blip-itm-large-coco"
    """A folder or Hub id of a BlipForImageTextRetrieval in HF's format."""
    weights: str | None = None
    """Instead of the model: a file in BLIP's own layout of ViT-L at 224 pixels (model_large.pth), as in the BLIP score
    of the ImageReward benchmark; with `tokenizer` and `sizes`."""
    form: Literal["itc", "itm", "itm_logit"] = "itc"
    """`itc`: a cosine; `itm`: a probability; `itm_logit`: its log-odds."""
    tokenizer: str | None = None
    """BERT's uncased vocabulary; default: the model's."""
    sizes: dict[str, int] | None = None
    """Of another architecture, for `weights`: vision_hidden_size, text_num_hidden_layers, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both towers; projections, cosine and head are always computed in float32."""

    card = Card(
        measures="How well an image matches its prompt, by BLIP's contrast (ITC) or its matching head (ITM).",
        range="itc [-1, 1]; itm [0, 1]; itm_logit: 0 is even odds",
        size="446 M (ViT-L/16 and BERT base)",
        hacking="The prompt's nouns as plain, central, repeated objects; relations and counts are given up.",
        partner="clip",
    )

    def licences(self) -> dict[str, str]:
        return self._of_checkpoint("Salesforce/blip-itm-" if self.weights else self.model)


class Blip(Reward):
    """Cosine (or probability, or log-odds) of image and prompt; higher is a better match."""

    Config = BlipConfig

    def __init__(self, config: BlipConfig):
        super().__init__(config)
        dtype = getattr(torch, config.dtype)
        if config.weights is not None:
            file = given_file("blip", "weights", config.weights)
            towers: Any
            towers, self.preprocess = blip_large(config.tokenizer or "bert-base-uncased", 35, dtype, config.sizes)
            seen = towers.vision_model.config.hidden_size
            towers.vision_proj, towers.text_proj = nn.Linear(seen, 256), nn.Linear(towers.width, 256)
            towers.itm_head = nn.Linear(towers.width, 2)
            load_original(towers, file, unused=PRETRAINING)
        else:
            from transformers import BlipForImageTextRetrieval

            network: Any = load_hf(BlipForImageTextRetrieval, config.model)
            tokenizer = load_tokenizer(config.tokenizer or config.model)
            towers = BlipTowers(network.vision_model, network.text_encoder, tokenizer, 35, dtype)
            towers.vision_proj, towers.text_proj = network.vision_proj, network.text_proj
            towers.itm_head = network.itm_head
            self.preprocess = hf_preprocess(config.model)
        self.towers: Any = towers
        self.form = config.form
        self._cache = PromptCache(self._features)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        states = self.towers.look(self.preprocess(images))
        if self.form == "itc":
            seen = normalize(self.towers.vision_proj(states[:, 0].to(self._precision)), dim=-1)
            return (seen * self._cache(prompts, images.device)).sum(-1)
        logits = self.towers.itm_head(self.towers.read(prompts, states, images.device))
        return logits.softmax(-1)[:, 1] if self.form == "itm" else logits[:, 1] - logits[:, 0]

    @property
    def _precision(self) -> torch.dtype:
        """Of the projections: float32, whatever the towers run in."""
        return self.towers.vision_proj.weight.dtype

    def _features(self, prompt: str, device: torch.device) -> Tensor:
        return normalize(self.towers.text_proj(self.towers.read([prompt], None, device)), dim=-1)[0]

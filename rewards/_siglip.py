"""SigLIP's towers: images are squashed to a square, prompts always filled up to the full length.

    u = f_v(pixels) / |.|, w = f_t(tokens) / |.|, logit = exp(scale) u . w + bias   (Zhai et al. 2023, arXiv:2303.15343)

Both towers end in an attention pool or a projection of their own. The text tower was trained without an attention mask
on prompts padded to 64 tokens: shorter ones would be other inputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rewards._clip import single
from rewards._load import hf_preprocess, load_hf, load_tokenizer
from rewards._preprocess import Preprocess
from rewards._text import PromptCache


class SiglipTowers(nn.Module):
    """A transformers SiglipModel (SigLIP, and SigLIP 2 at a fixed resolution); `text` false leaves out that tower."""

    kind = "SiglipModel"
    preprocessing: type[Preprocess] = Preprocess

    def __init__(self, model: str, dtype: torch.dtype = torch.float32, *, text: bool = True):
        super().__init__()
        import transformers

        network: Any = load_hf(getattr(transformers, self.kind), model)
        self.vision_model = network.vision_model
        self.head = self.vision_model.head  # the attention pool stays in float32
        self.vision_model.to(dtype)
        self.head.float()
        self.vision_model.use_head = False
        self.logit_scale, self.logit_bias = (float(x.detach()) for x in (network.logit_scale.exp(), network.logit_bias))
        self.preprocess = hf_preprocess(model, self.preprocessing)
        self.dtype = dtype
        if text:
            self.text_model = network.text_model
            self.tokenizer = load_tokenizer(model)
            self.max_tokens = int(self.text_model.config.max_position_embeddings)
            self._cache = PromptCache(self._one_prompt)

    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> unit embeddings (B, D), with graph."""
        return normalize(self.head(single(self._states(images))), dim=-1)

    def _states(self, images: Tensor) -> Tensor:
        """Images -> what the pool reads, (B, patches, D)."""
        return self.vision_model(pixel_values=self.preprocess(images).to(self.dtype)).last_hidden_state

    def prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """B prompts -> unit embeddings (B, D) on `device`, without graph, each distinct prompt encoded once."""
        return self._cache(prompts, device)

    def _one_prompt(self, prompt: str, device: torch.device) -> Tensor:
        tokens = self.tokenizer(
            [prompt.lower()], padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return normalize(self.text_model(input_ids=tokens["input_ids"].to(device)).pooler_output, dim=-1)[0]

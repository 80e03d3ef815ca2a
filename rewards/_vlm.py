"""A vision-language model of transformers that is shown an image and asked about it: what it would say next.

Text goes through the model's own chat template and processor. The pixels of the Qwen-VL models (Qwen2-VL, Qwen2.5-VL,
Qwen3-VL) are made here, with a gradient; others (LLaVA, ...) read them through their own processor, without one. Images
are asked about one at a time: an answer depends on nothing else, and nothing is padded. Logits are float32.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewards._errors import RewardError
from rewards._load import hf_config, load_hf, not_loaded
from rewards._numerals import NUMERALS
from rewards._qwen_pixels import QwenPixels

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class Vlm(nn.Module):
    """An image-text-to-text model with its processor, from a folder or a Hub id."""

    question = 'Does this image show "{prompt}"? Please answer yes or no.'

    def __init__(self, model: str, dtype: torch.dtype, *, least: int | None = None, most: int | None = None):
        super().__init__()
        from transformers import AutoModelForImageTextToText

        self.differentiable = knows_pixels(model)
        self.processor = load_processor(model)
        self.network: Any = load_hf(AutoModelForImageTextToText, model, dtype=dtype)
        self.tokenizer: Any = self.processor.tokenizer
        self.pixels = None
        if self.differentiable:
            told = self.processor.image_processor.to_dict()
            told |= {key: value for key, value in (("min_pixels", least), ("max_pixels", most)) if value is not None}
            self.pixels = QwenPixels.from_hf(told)

    def says(self, image: Tensor, question: str, words: Sequence[str]) -> Tensor:
        """log of the probability that the answer begins with each word, (len(words),)."""
        logits = self.next_words(image, question)
        return torch.stack([chosen(logits, self.spelled(word)) for word in words])

    def next_words(self, image: Tensor, question: str, begun: str = "") -> Tensor:
        """Logits (V,) of the token after the question, and after `begun`, the words an answer is made to begin with."""
        inputs = self.inputs(image, question, begun)
        out = self.network(**inputs, use_cache=False)
        return out.logits[0, -1].float()

    def inputs(self, image: Tensor, question: str, begun: str = "") -> dict[str, Tensor]:
        """What the network takes for one image (3, H, W) in [0, 1]."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        try:
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (ValueError, TypeError) as error:
            raise RewardError(f"{self.processor.__class__.__name__} has no chat template ({error}).") from None
        return encode(self.processor, self.pixels, image, text + begun)

    def spelled(self, word: str) -> list[int]:
        """First tokens of a word as an answer may begin: plain, capitalised, after a blank, a number also in digits."""
        plain = word.strip()
        ways = {plain, plain.lower(), plain.capitalize(), NUMERALS.get(plain.lower(), plain)}
        ways |= {f" {way}" for way in ways}
        found = {self.tokenizer.encode(way, add_special_tokens=False)[0] for way in sorted(ways)}
        return sorted(found)

    def said(self, image: Tensor, question: str, length: int = 512) -> str:
        """The greedy answer as text."""
        inputs = self.inputs(image, question)
        with torch.no_grad():
            out = self.network.generate(**inputs, max_new_tokens=length, do_sample=False)
        return self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def knows_pixels(model: str) -> bool:
    """Whether a model's pixels are made here, with a gradient."""
    return hf_config(model).get("model_type") in QWEN


def load_processor(model: str) -> Any:
    """The processor of a folder or a Hub id, its images by PIL."""
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(model)
        found.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise RewardError(not_loaded(model, error)) from error
    return found


def encode(processor: Any, pixels: QwenPixels | None, image: Tensor, text: str) -> dict[str, Tensor]:
    """Tokens and pixels of one image (3, H, W) and a text with the model's placeholder for it."""
    from PIL import Image

    if pixels is None:
        levels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0)
        found = processor(text=[text], images=[Image.fromarray(levels.numpy())], return_tensors="pt")
        return {key: value.to(image.device) for key, value in found.items()}
    patches, grid = pixels(image[None])
    token = processor.image_token
    number = int(grid[0].prod()) // pixels.merge**2
    filled = re.sub(re.escape(token), token * number, text, count=1)
    found = processor.tokenizer([filled], return_tensors="pt")
    ids = found["input_ids"].to(image.device)
    kinds = (ids == processor.image_token_id).int()
    return {
        "input_ids": ids,
        "attention_mask": found["attention_mask"].to(image.device),
        "mm_token_type_ids": kinds,
        "pixel_values": patches,
        "image_grid_thw": grid,
    }


def chosen(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """log of the probability that the next token is one of `tokens`."""
    return torch.logsumexp(logits[list(tokens)], 0) - torch.logsumexp(logits, 0)

"""HPSv3: what people prefer, by Qwen2-VL-7B with a head that reads one token after a long instruction.

    h = the last hidden state at <|Reward|>,  (mu, log sigma) = MLP(h),  r = mu
    MLP: D - 1024 - ReLU - 16 - ReLU - 2      (Ma et al. 2025, arXiv 2508.03789)

Positions are plain 0, 1, 2, ...: the published network was trained and is run without Qwen2-VL's three axes of them.
The image is resized to about 256 x 28 x 28 pixels. The instruction is not part of this project: it is read from the
published source as text (nothing in it is run), once, and its sha256 is checked.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rewards._base import Reward
from rewards._card import Card
from rewards._config import RewardConfig
from rewards._errors import RewardError
from rewards._load import given_file, hub_file, load_hf_empty, load_strictly, read_state, url_file
from rewards._qwen_pixels import QwenPixels
from rewards._vlm import encode, load_processor

SOURCE = "https://raw.githubusercontent.com/MizzenAI/HPSv3/main/hpsv3/dataset/data_collator_qwen.py"
DIGEST = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"  # of the instruction and what follows it
TOKEN = "<|Reward|>"
AREA = 256 * 28 * 28  # pixels


class Hpsv3Config(RewardConfig):
    name: Literal["hpsv3"] = "hpsv3"
    model: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Where config, tokenizer and preprocessing are read from; its weights are not."""
    weights: str | None = None
    """The file HPSv3.safetensors; default: MizzenAI/HPSv3 on the Hub (17 GB)."""
    instruction: str | None = None
    """A text file with {text_prompt} and <|Reward|> in it; default: the published one, fetched once and checked."""
    area: int = AREA
    """Pixels that an image is resized to."""
    head: int = 1024
    """Width of the head."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the network; the head is always computed in float32."""

    card = Card(
        measures="Which of two pictures of a prompt people would prefer, trained on 1.5 million pairs (HPDv3).",
        range="about -5 to 15 in use",
        size="8.3 B (Qwen2-VL-7B)",
        hacking="Not measured. By what it was trained on: detail and gloss as in its training's best pictures.",
        partner="imagereward",
        licences={"MizzenAI/HPSv3": "Apache-2.0"},
    )

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for key, path in (("weights", self.weights), ("instruction", self.instruction)):
            if path is not None and not Path(path).expanduser().is_file():
                yield f".{key}", f"is {path!r}, and there is no such file. Check the path."

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        return (f"{TOKEN} stands in the prompt {prompt!r}. Remove it." for prompt in prompts if TOKEN in prompt)


class Hpsv3(Reward):
    """HPSv3's mean preference; higher is preferred."""

    Config = Hpsv3Config
    config: Hpsv3Config

    def __init__(self, config: Hpsv3Config):
        super().__init__(config)
        self.instruction = instruction(config.instruction)
        self.processor = load_processor(config.model)
        self.processor.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
        self.token = self.processor.tokenizer.convert_tokens_to_ids(TOKEN)
        told = self.processor.image_processor.to_dict()
        self.pixels = QwenPixels.from_hf(told | {"min_pixels": config.area, "max_pixels": config.area})
        if config.weights is not None:
            file = given_file("hpsv3", "weights", config.weights)
        else:
            file = hub_file("hpsv3", "weights", "MizzenAI/HPSv3", "HPSv3.safetensors")
        state = modern(read_state(file, getattr(torch, config.dtype)))
        self.network: Any = load_hf_empty("Qwen2VLForConditionalGeneration", config.model, getattr(torch, config.dtype))
        self.network.resize_token_embeddings(len(self.processor.tokenizer), mean_resizing=False)
        width = self.network.config.get_text_config().hidden_size
        self.head: Any = head(width, config.head)
        load_strictly(
            self.head, {k.removeprefix("rm_head."): v.float() for k, v in state.items() if "rm_head" in k}, file
        )
        load_strictly(self.network, {k: v for k, v in state.items() if "rm_head" not in k}, file)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)])

    def _score(self, image: Tensor, prompt: str) -> Tensor:
        text = self.instruction.replace("{text_prompt}", prompt)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        asked = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = encode(self.processor, self.pixels, image, asked)
        ids, inner = inputs["input_ids"], self.network.model
        words = inner.get_input_embeddings()(ids)
        seen = inner.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        where = (ids == self.processor.image_token_id)[..., None].expand_as(words)
        words = words.masked_scatter(where, torch.cat(list(seen)).to(words.dtype))
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        states = inner.language_model(inputs_embeds=words, position_ids=places, use_cache=False).last_hidden_state
        at = states[0, ids[0] == self.token]
        if len(at) != 1:
            raise RewardError(
                f"reward hpsv3: {TOKEN} stands {len(at)} times in what is asked of {prompt!r}. Say it once."
            )
        return self.head(at.float())[0, 0]


def head(width: int, inner: int) -> nn.Sequential:
    """The published head; its dropout is none outside training."""
    layers = [nn.Linear(width, inner), nn.ReLU(), nn.Dropout(0.05), nn.Linear(inner, 16), nn.ReLU(), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers 4.45, in which the weights are published, as those of transformers 5."""
    found = {}
    for key, value in state.items():
        if key.startswith("visual."):
            key = f"model.{key}"
        elif key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
            key = f"model.language_model.{key.removeprefix('model.')}"
        found[key] = value
    return found


def instruction(path: str | None) -> str:
    """What is asked, with {text_prompt} and <|Reward|> in it."""
    file = given_file("hpsv3", "instruction", path) if path else _published()
    text = file.read_text(encoding="utf-8")
    if path and file.suffix != ".py":
        return text
    constants = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants |= {getattr(target, "id", ""): node.value.value for target in node.targets}
    found = f"{constants.get('INSTRUCTION', '')}{constants.get('prompt_with_special_token', '')}"
    if hashlib.sha256(found.encode()).hexdigest() != DIGEST:
        raise RewardError(
            f"{file} does not hold HPSv3's published instruction. Delete it to fetch it again, or set "
            "rewards.*.instruction to a text file of your own."
        )
    return found


def _published() -> Path:
    return url_file("hpsv3", "instruction", SOURCE, "hpsv3-data_collator_qwen.py", None)

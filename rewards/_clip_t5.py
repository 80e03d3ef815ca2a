"""CLIP-FlanT5, VQAScore's own network: image tokens between the words of a question, a T5 that answers.

    e = [ E(system " USER: "), P(h), E("\n" question " ASSISTANT: ") ]     E: T5's embedding of a part's tokens and </s>
    h: CLIP's patches of the layer before the last; P: a linear map, GELU, a linear map
    log p(word) = mean over its tokens, </s> among them, of log p(token | those before it, e)

Lin et al. 2024, arXiv 2404.01291, as t2v_metrics runs it: the image padded to a square in CLIP's mean colour, the
vocabulary cut to what the tokenizer knows. T5 and CLIP are transformers' own; images are asked about one at a time.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rewards._errors import RewardError
from rewards._load import (
    given_file,
    hf_config,
    hf_preprocess,
    hub_file,
    load_hf,
    load_strictly,
    load_tokenizer,
    read_state,
)
from rewards._preprocess import Preprocess

KIND = "clip_t5"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)  # LLaVA's, as published: the network was trained behind it
PARTS = (SYSTEM + " USER: ", "\n{} ASSISTANT: ")
ALIASES = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of shared.weight
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class ClipT5(nn.Module):
    """From a folder or a Hub id; `tokenizer` is a Flan-T5's."""

    question = 'Does this figure show "{prompt}"? Please answer yes or no.'

    def __init__(self, model: str, dtype: torch.dtype, tokenizer: str):
        super().__init__()
        from transformers import CLIPVisionModel, T5Config, T5ForConditionalGeneration

        told = hf_config(model)
        if told.get("mm_projector_type") != "mlp2x_gelu" or told.get("mm_vision_select_feature", "patch") != "patch":
            raise RewardError(f"reward vqascore: {model} joins image and text otherwise than CLIP-FlanT5 does.")
        tower, self.layer = str(told["mm_vision_tower"]), int(told.get("mm_vision_select_layer", -2))
        self.tokenizer: Any = load_tokenizer(tokenizer)
        plain = {k: v for k, v in told.items() if not k.startswith("mm_") and k not in ("model_type", "architectures")}
        own: dict[str, Any] = {k: v for k, v in plain.items() if "dtype" not in k}
        own["vocab_size"] = len(self.tokenizer)
        config = T5Config(**own)
        self.network: Any = T5ForConditionalGeneration._from_config(config, dtype=dtype)
        tied = bool(told.get("tie_word_embeddings", True))
        if not tied:  # transformers 5 ties them whatever the config says; Flan-T5 has two matrices
            self.network.lm_head.weight = nn.Parameter(self.network.lm_head.weight.detach().clone())
        self.projector = nn.Sequential(
            nn.Linear(told["mm_hidden_size"], config.d_model), nn.GELU(), nn.Linear(config.d_model, config.d_model)
        ).to(dtype)
        self.tower: Any = load_hf(CLIPVisionModel, tower, dtype=dtype)
        self.preprocess = Squared(hf_preprocess(tower))
        self._load(model, dtype, tied)

    def says(self, image: Tensor, question: str, words: Sequence[str]) -> Tensor:
        """An image (3, H, W) in [0, 1] -> log p of each word as the answer, (len(words),)."""
        before, after = (self._ids(part.format(question), image.device) for part in PARTS)
        pixels = self.preprocess(image[None]).to(self.tower.dtype)
        patches = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        embed = self.network.get_input_embeddings()
        asked = torch.cat([embed(before), self.projector(patches), embed(after)], 1)
        seen = self.network.get_encoder()(inputs_embeds=asked)
        return torch.stack([self._answer(seen, self._ids(word, image.device)) for word in words])

    def _answer(self, seen: Any, labels: Tensor) -> Tensor:
        logits = self.network(encoder_outputs=seen, labels=labels, use_cache=False).logits.float()
        return logits.log_softmax(-1).gather(-1, labels[..., None]).mean()

    def _ids(self, text: str, device: torch.device) -> Tensor:
        return torch.tensor([self.tokenizer(text).input_ids], device=device)

    def _load(self, model: str, dtype: torch.dtype, tied: bool) -> None:
        state = _sharded(model, dtype)
        vision = {k.removeprefix("vision_tower.vision_tower."): v for k, v in state.items() if k.startswith("vision_")}
        bridge = {k.removeprefix("mm_projector."): v for k, v in state.items() if k.startswith("mm_projector.")}
        words = {k: v for k, v in state.items() if not k.startswith(("vision_", "mm_projector.")) and k not in ALIASES}
        rows = len(self.tokenizer)
        for key in ("shared.weight", "lm_head.weight"):
            if key in words and len(words[key]) > rows:
                words[key] = words[key][:rows]
        if "shared.weight" in words:
            same, own = (*ALIASES, "lm_head.weight") if tied else ALIASES, self.network.state_dict().keys()
            words |= {key: words["shared.weight"] for key in same if key in own - words.keys()}
        load_strictly(self.network, words, model)
        load_strictly(self.projector, bridge, model)
        if vision:  # fine-tuned with the rest, or CLIP's own once more
            own = self.tower.state_dict().keys()
            named = {k if k in own else k.removeprefix("vision_model."): v for k, v in vision.items()}
            load_strictly(self.tower, {k: v for k, v in named.items() if not k.endswith("position_ids")}, model)


class Squared:
    """To a square, in the middle, on CLIP's mean colour in whole levels; then as the checkpoint says."""

    def __init__(self, then: Preprocess):
        self.then = then

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        ground = images.new_tensor([int(255 * mean) / 255 for mean in self.then.mean]).view(1, 3, 1, 1)
        bars = (left, side - width - left, top, side - height - top)
        return self.then(pad(images, bars) + ground * pad(torch.zeros_like(images[:, :1]), bars, value=1.0))


def _sharded(model: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in one file or several."""
    name = _there(model)
    if not name.endswith(".json"):
        return read_state(_file(model, name), dtype)
    shards = sorted(set(json.loads(_file(model, name).read_text(encoding="utf-8"))["weight_map"].values()))
    return {key: tensor for shard in shards for key, tensor in read_state(_file(model, shard), dtype).items()}


def _there(model: str) -> str:
    """Which of FILES a checkpoint has; of a Hub id the last that can be had."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = [name for name in FILES if (folder / name).is_file()]
        if not found:
            raise RewardError(f"reward vqascore: there are no weights in {model}. Give a complete checkpoint.")
        return found[0]
    from huggingface_hub import file_exists, try_to_load_from_cache

    for name in FILES:
        if isinstance(try_to_load_from_cache(model, name), str):
            return name
    try:
        return next(name for name in FILES if file_exists(model, name))
    except Exception as error:  # the Hub's client and its transport raise many kinds
        raise RewardError(
            f"reward vqascore: the weights of {model} are neither cached nor to be had. Download it elsewhere and set "
            "model to the folder."
        ) from error


def _file(model: str, name: str) -> Path:
    if Path(model).expanduser().is_dir():
        return given_file("vqascore", "model", str(Path(model).expanduser() / name))
    return hub_file("vqascore", "model", model, name)

"""The diffusers folder of a published checkpoint at its own size, of random weights, part after part.

    python scripts/bench/random_pipeline.py stable-diffusion-v1-5/stable-diffusion-v1-5 OUT --dtype bfloat16

Configs, dtypes and shards are those that `align models` lists; each part is made, written and freed before the next, so
that memory holds one. Tokenizers are stand-ins within the encoders' vocabularies: one token a letter, a word or a sign.
`--fraction 1/10` keeps a tenth of the layers and of the widths of UNets and autoencoders: another network, for tests.
"""

import argparse
import inspect
import json
import math
import string
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from align.models._published import Published
from align.models._real_size import find, made, text_encoders

LETTERS = string.ascii_lowercase + string.digits + ",."
CLIP_WORDS = 49408
ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
DEEP = ("num_layers", "num_single_layers", "num_hidden_layers", "depth", "layers_per_block")
"""Settings that are a number of layers."""
CHAT = "<user> {{ messages[0].content }} <answer> {% if enable_thinking %} think {% endif %}"


def absent(family: Any) -> dict[str, list[None]]:
    """What the index of a published UNet's pipeline lists without having it: of ABSENT what its class takes."""
    import diffusers

    taken = inspect.signature(getattr(diffusers, family.pipelines[0])).parameters
    return {name: [None, None] for name in ABSENT if name in taken and family.network_class == "UNet2DConditionModel"}


def write(
    checkpoint: str, folder: Path, *, dtype: torch.dtype = torch.float32, fraction: Fraction = Fraction(1)
) -> int:
    """Writes the folder and returns the number of the network's parameters; an unknown checkpoint is a SystemExit."""
    import diffusers

    known = find(checkpoint)
    if known is None:
        raise SystemExit(f"{checkpoint}: its configs are not known here. `align models` lists those that are.")
    family, published = known
    torch.manual_seed(0)
    index: dict[str, Any] = {"_class_name": family.pipelines[0], "_diffusers_version": diffusers.__version__}
    index |= absent(family)
    index |= family.constructor
    parts = {family.network_name: (family.network_class, published.network), "vae": (family.vae_class, published.vae)}
    sizes = {}
    for name, (kind, settings) in parts.items():
        network: Any = made(getattr(diffusers, kind), shrunk(settings, fraction), "cpu", dtype)
        network.save_pretrained(folder / name)
        index[name], sizes[name] = ["diffusers", kind], sum(p.numel() for p in network.parameters())
        del network
    for name, (kind, settings) in published.text.items():
        one = Published(**{**vars(published), "text": {name: (kind, shrunk(settings, fraction))}})
        encoder: Any = text_encoders(one, device="cpu", dtype=dtype)[name]
        encoder.save_pretrained(folder / name)
        words = name.replace("text_encoder", "tokenizer")
        tokenizer = _tokenizer(kind)
        tokenizer.save_pretrained(folder / words)
        index[name], index[words] = ["transformers", kind], ["transformers", type(tokenizer).__name__]
        del encoder
    scheduler = dict(published.scheduler)
    named = scheduler.pop("_class_name")
    getattr(diffusers, named).from_config(scheduler).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", named]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return sizes[family.network_name]


def shrunk(settings: Mapping[str, Any], fraction: Fraction) -> dict[str, Any]:
    """`settings` with so many of the layers and of the widths that are counted in blocks; all of them at 1."""
    if fraction == 1:
        return dict(settings)
    found: dict[str, Any] = {
        name: shrunk(value, fraction) if isinstance(value, Mapping) else value for name, value in settings.items()
    }
    found |= {name: max(1, round(found[name] * fraction)) for name in DEEP if isinstance(found.get(name), int)}
    widths: Any = found.get("block_out_channels")
    if widths or "cross_attention_dim" in found:
        widths = widths or (320, 640, 1280, 1280)  # the default of UNet2DConditionModel
        found["block_out_channels"] = tuple(32 * math.ceil(width * fraction / 32) for width in widths)
        found["sample_size"] = max(8, 8 * round(found["sample_size"] * fraction / 8))
    return found


def _tokenizer(encoder: str) -> Any:
    if encoder.startswith("CLIP"):
        return _clip_tokenizer()
    return _plain_tokenizer(LETTERS, ".") if encoder.startswith("T5") else _plain_tokenizer(LETTERS, r"\w+|[^\w\s]")


def _clip_tokenizer() -> Any:
    """CLIP's vocabulary in its size, with its two signs in their places: pooling looks for the last."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}</w>" for number in range(CLIP_WORDS - 2 - len(words))]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _plain_tokenizer(words: Iterable[str], pattern: str) -> Any:
    """Ids from 0 are padding, end, unknown, then `words`; T5's texts end with a sign, chats have a template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    if pattern == ".":
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="right", chat_template=CHAT, **special)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--fraction", type=Fraction, default=Fraction(1))
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    print(write(arguments.checkpoint, arguments.out, dtype=dtype, fraction=arguments.fraction))

"""The tokenizer of the captions: byte-pair merges learnt on the grammar, in CLIP's vocab.json / merges.txt layout."""

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from align.shapes.captions import SKILLS, requirements, say
from scripts.pretrain.common import WORK

LENGTH = 16  # positions, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"


def build() -> CLIPTokenizer:
    """Learn the merges and save the tokenizer to WORK/out/tokenizer.

    Single printable ASCII characters, inside a word and ending one, come first, so that any English text can be read.
    """
    folder = WORK / "out" / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [say(r) for s in SKILLS for r in requirements(s)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    learner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), START, END]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    return load()


@cache
def load(folder: Path | None = None) -> CLIPTokenizer:
    """The tokenizer learnt by `build`."""
    return CLIPTokenizer.from_pretrained(folder or WORK / "out" / "tokenizer")


@cache
def _ids(caption: str) -> Tensor:
    out = load()(caption, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return out.input_ids[0]


def tokens(captions: list[str]) -> Tensor:
    """Token ids (B, LENGTH), padded with the end token; each caption is looked up once."""
    return torch.stack([_ids(c) for c in captions])

"""Stage text: the tokenizer, and a text tower warmed up on saying what a caption demands.

The tokenizer's byte-pair merges are learnt on the grammar, in CLIP's vocab.json / merges.txt layout. The tower learns
to name, from the caption's end token, shape, colour, size and number of each phrase, their relation, and what stands left,
right, above and below by it; clip and sd both start from it. Who stands where depends on a noun's place in the caption
and on the relation together, which a diffusion loss alone does not discover: without it the relation was ignored.
"""

import json
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from align.shapes.captions import NUMBERS, RELATIONS, SIZES, SKILLS, Requirement, requirements, say
from align.shapes.scene import COLOURS, SHAPES
from scripts.pretrain.common import WORK, generator, record, train

LENGTH = 16  # positions, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
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
    """The tokenizer learnt by `build_tokenizer`."""
    return CLIPTokenizer.from_pretrained(folder or WORK / "out" / "tokenizer")


@cache
def _ids(caption: str) -> Tensor:
    out = load()(caption, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return out.input_ids[0]


def tokens(captions: list[str]) -> Tensor:
    """Token ids (B, LENGTH), padded with the end token; each caption is looked up once."""
    return torch.stack([_ids(c) for c in captions])


def config() -> CLIPTextConfig:
    """The text tower's architecture."""
    tokenizer = load()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def load_encoder() -> CLIPTextModel:
    """The warmed-up tower, fp32."""
    return CLIPTextModel.from_pretrained(WORK / "out" / "text")


_PARTS = (SHAPES, tuple(COLOURS), SIZES, tuple(NUMBERS.values()))
CLASSES = [1 + len(part) for part in _PARTS] * 2 + [1 + len(RELATIONS)] + [1 + len(SHAPES), 1 + len(COLOURS)] * 4


def _place(value: object, part: tuple) -> int:
    return 1 + part.index(value) if value in part else 0


def facts(r: Requirement) -> list[int]:
    """What a requirement demands as class numbers, 0 for nothing: four for each of two phrases, their relation, then
    shape and colour of what stands on each side of the other."""
    row = []
    for item in (*r.items, None)[:2]:
        values = (item.shape, item.colour, item.size, item.count) if item else (None,) * 4
        row += [_place(value, part) for part, value in zip(_PARTS, values, strict=True)]
    row.append(_place(r.relation, tuple(RELATIONS)))
    for side, converse in RELATIONS.items():
        stands = {side: r.items[0], converse: r.items[-1]}.get(r.relation or "")
        row += [_place(stands.shape, SHAPES), _place(stands.colour, tuple(COLOURS))] if stands else [0, 0]
    return row


def build_head() -> nn.Linear:
    """Names the facts from the end token's state; thrown away after training."""
    return nn.Linear(128, sum(CLASSES))


def understanding(head: nn.Linear, state: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of the facts (B, len(CLASSES)), summed over them. state: (B, 128)."""
    out = head(state).split(CLASSES, -1)
    return sum(F.cross_entropy(o, wanted[:, k]) for k, o in enumerate(out))  # type: ignore[return-value]


def every_caption() -> tuple[Tensor, Tensor]:
    """Token ids and facts of all that can be said."""
    every = [r for s in SKILLS for r in requirements(s)]
    return tokens([say(r) for r in every]), torch.tensor([facts(r) for r in every])


def understood(tower: CLIPTextModel, head: nn.Linear) -> float:
    """Share of all captions of which every fact is named right."""
    ids, wanted = every_caption()
    with torch.no_grad():
        states = torch.cat([tower(part).pooler_output for part in ids.split(1024)])
        out = head(states).split(CLASSES, -1)
    return torch.stack([o.argmax(-1) == wanted[:, k] for k, o in enumerate(out)]).all(0).float().mean().item()


def main(steps: int = 1200, batch: int = 192, seed: int = 0) -> None:
    """Learn the tokenizer, then the tower."""
    build_tokenizer()
    torch.manual_seed(seed)
    tower, head = CLIPTextModel(config()), build_head()
    ids, wanted = every_caption()

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(ids), (batch,), generator=generator(seed, 20, step))
        return understanding(head, tower(ids[rows]).pooler_output, wanted[rows])

    figures = train("text", {"text": tower, "head": head}, loss, steps=steps, lr=2e-3, warmup=50, ema=0.98)
    tower.save_pretrained(WORK / "out" / "text")
    record("text", figures | {"captions understood": round(understood(tower, head), 4)})

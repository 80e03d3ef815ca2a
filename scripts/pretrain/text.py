"""Stage text: the tokenizer, and a text tower warmed up on saying what a caption demands.

The tokenizer's byte-pair merges are learnt on the grammar, in CLIP's vocab.json / merges.txt layout. The tower learns
to name, from the caption's end token, shape, colour, size and number of each phrase, their relation, and what stands
left, right, above and below by it; clip and sd both start from it. The last four tokens, always padding, each name what
stands on one side, in the words that a noun's own token is read by. Who stands where depends on a noun's place in the
caption and on the relation together, which a diffusion loss alone did not discover: it left the relation unread.
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
from scripts.pretrain.common import DEVICE, WORK, generator, record, train

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


def things(r: Requirement, ids: Tensor) -> Tensor:
    """(LENGTH, 2): shape and colour that a token names: of a noun what it stands for, of the last four tokens what
    stands left, right, above and below (0: nothing); -100 where a token names nothing."""
    out = torch.full((LENGTH, 2), -100)
    out[-4:] = torch.tensor(facts(r)[-8:]).view(4, 2)
    nouns = [i for i, word in enumerate(load().convert_ids_to_tokens(ids)) if word.startswith(SHAPES)]
    for i, item in zip(nouns, r.items, strict=True):
        out[i] = torch.tensor([_place(item.shape, SHAPES), _place(item.colour, tuple(COLOURS))])
    return out


class Heads(nn.Module):
    """Name the facts from the end token's state, and what tokens stand for from their own; thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.facts, self.things = nn.Linear(128, sum(CLASSES)), nn.Linear(128, 2 + len(SHAPES) + len(COLOURS))

    def forward(self, out) -> tuple[list[Tensor], list[Tensor]]:
        """The tower's output -> logits of each fact (B, C), and of shape and colour (B, LENGTH, C)."""
        named = self.things(out.last_hidden_state).split([1 + len(SHAPES), 1 + len(COLOURS)], -1)
        return list(self.facts(out.pooler_output).split(CLASSES, -1)), list(named)

    def loss(self, out, wanted: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropies, summed over the facts (B, len(CLASSES)) and over the things (B, LENGTH, 2)."""
        told, named = self(out)
        losses = [F.cross_entropy(o, wanted[0][:, k]) for k, o in enumerate(told)]
        losses += [4 * F.cross_entropy(o.flatten(0, 1), wanted[1][..., k].flatten()) for k, o in enumerate(named)]
        return torch.stack(losses).sum()


def every_caption() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, facts and things of all that can be said."""
    every = [r for s in SKILLS for r in requirements(s)]
    ids = tokens([say(r) for r in every])
    told = torch.stack([things(r, row) for r, row in zip(every, ids, strict=True)])
    return ids, torch.tensor([facts(r) for r in every]), told


@torch.no_grad()
def understood(tower: CLIPTextModel, heads: Heads) -> float:
    """Share of all captions of which every fact and every thing is named right."""
    right = []
    for ids, wanted, things in zip(*(every.split(1024) for every in every_caption()), strict=True):
        told, named = heads(tower(ids))
        facts_right = torch.stack([o.argmax(-1) == wanted[:, k] for k, o in enumerate(told)], -1).all(-1)
        asked = things[..., 0] >= 0
        named_right = torch.stack([o.argmax(-1) == things[..., k] for k, o in enumerate(named)], -1).all(-1)
        right.append(facts_right & (named_right | ~asked).all(-1))
    return torch.cat(right).float().mean().item()


def main(steps: int = 1200, batch: int = 192, seed: int = 0) -> None:
    """Learn the tokenizer, then the tower."""
    build_tokenizer()
    torch.manual_seed(seed)
    tower, heads = CLIPTextModel(config()).to(DEVICE), Heads().to(DEVICE)
    ids, *wanted = (every.to(DEVICE) for every in every_caption())

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(ids), (batch,), generator=generator(seed, 20, step))
        return heads.loss(tower(ids[rows]), (wanted[0][rows], wanted[1][rows]))

    figures = train("text", {"text": tower, "heads": heads}, loss, steps=steps, lr=2e-3, warmup=50, ema=0.98)
    tower.to("cpu").save_pretrained(WORK / "out" / "text")
    record("text", figures | {"captions understood": round(understood(tower, heads.to("cpu")), 4)})

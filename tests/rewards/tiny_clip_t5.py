"""A tiny CLIP-FlanT5 in its published layout, and what it says, written out."""

import json
from pathlib import Path

import torch
from reward_toys import randomise

ROWS = 150  # of the embedding; the tokenizer knows fewer, as Flan-T5's does


def tokenizer(folder: Path):
    """One token a character, ended by </s>; Flan-T5's strips the ends of a text, and so does this."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "</s>", "<unk>", *(chr(code) for code in range(32, 127))]
    made = Tokenizer(models.WordLevel({symbol: k for k, symbol in enumerate(symbols)}, unk_token="<unk>"))
    made.normalizer = normalizers.Strip()
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def save(folder: Path):
    """FOLDER/it (two shards of .bin, as published), FOLDER/tower, FOLDER/tokenizer; returns (T5, tower, projector)."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = randomise(CLIPVisionModel(CLIPVisionConfig(**shared, image_size=28, patch_size=7)), seed=1)
    tower.save_pretrained(folder / "tower")
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "tower"
    )
    tokenizer(folder / "tokenizer")
    told = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu"}
    told |= {"tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(2)
    network = T5ForConditionalGeneration(T5Config(**told, vocab_size=ROWS)).eval()
    network.lm_head.weight = torch.nn.Parameter(torch.randn(ROWS, 24) / 5)  # two matrices, as Flan-T5 has
    bridge = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 24))
    with torch.no_grad():
        for tensor in bridge.parameters():
            tensor.mul_(4)
    vision = {f"vision_tower.vision_tower.vision_model.{k}": v for k, v in tower.state_dict().items()}
    state = dict(network.state_dict()) | {f"mm_projector.{k}": v for k, v in bridge.state_dict().items()}
    state |= {"embed_tokens.weight": network.shared.weight.detach()} | vision
    (folder / "it").mkdir()
    keys = sorted(state)
    parts = {f"pytorch_model-0000{n}-of-00002.bin": keys[n - 1 :: 2] for n in (1, 2)}
    for name, some in parts.items():
        torch.save({key: state[key].clone() for key in some}, folder / "it" / name)
    index = {"weight_map": {key: name for name, some in parts.items() for key in some}}
    (folder / "it" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    mm = {"mm_vision_tower": str(folder / "tower"), "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu"}
    mm |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    config = {"model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"], "vocab_size": ROWS}
    (folder / "it" / "config.json").write_text(json.dumps(config | told | mm))
    return network, tower, bridge.eval()


def padded(image, colour):
    """PIL: pasted into the middle of a square of the colour."""
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square

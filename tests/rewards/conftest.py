"""Tiny checkpoints in stock formats."""

import json
from pathlib import Path

import pytest
import torch
from reward_toys import randomise


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel folder as `save_pretrained` writes it: 32-pixel images, patch 8, byte-level BPE, float16 on disk."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("tiny_clip")
    symbols = list(bytes_to_unicode().values())
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        {token: index for index, token in enumerate(vocabulary)}, [("r", "e"), ("re", "d</w>")], model_max_length=16
    )
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shared | {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 16,
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    config = CLIPConfig(
        text_config=text, vision_config=shared | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    randomise(CLIPModel(config), seed=0).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`NAME/FILE` of a tiny open_clip model with the standard tokenizer."""
    import open_clip

    folder = tmp_path_factory.mktemp("tiny_open_clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "tiny-ViT-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.save(randomise(open_clip.create_model("tiny-ViT-8"), seed=1).state_dict(), folder / "weights.pt")
    return f"tiny-ViT-8/{folder / 'weights.pt'}"


@pytest.fixture(scope="session")
def tiny_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aesthetic head on the tiny CLIP's 24 dimensions, keys as in the published file (dropouts have none)."""
    generator = torch.Generator().manual_seed(2)
    sizes = {0: (24, 16), 2: (16, 12), 4: (12, 8), 6: (8, 4), 7: (4, 1)}
    head = {}
    for number, (inner, outer) in sizes.items():
        head[f"layers.{number}.weight"] = torch.randn(outer, inner, generator=generator) / inner**0.5
        head[f"layers.{number}.bias"] = torch.randn(outer, generator=generator)
    path = tmp_path_factory.mktemp("tiny_head") / "head.pth"
    torch.save(head, path)
    return path

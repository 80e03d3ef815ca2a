"""Tiny checkpoints in stock formats, and images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PROMPTS = ["a red circle", "two blue squares", "a green star left of a red triangle"]


def randomise(network: torch.nn.Module, seed: int, std: float = 0.15) -> torch.nn.Module:
    """Weights large enough that features differ from one input to another; default initialisation hides bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 0:
                continue  # the temperature
            parameter.normal_(0, std, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
    return network


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


def noise(height: int, width: int) -> Image.Image:
    """Independent 8-bit levels: the hardest case for a resize."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def smooth(height: int, width: int) -> Image.Image:
    """Sums of slow waves: many values near a rounding tie."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    waves = [np.sin(3 * x + 2 * y), np.cos(5 * x - y), np.sin(4 * x * y + 1)]
    return Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))


def stripes(height: int, width: int) -> Image.Image:
    """Saturated black and white bars: bicubic overshoots at every edge."""
    y, x = np.mgrid[0:height, 0:width]
    bars = np.stack([x // 7 % 2, y // 11 % 2, (x + y) // 13 % 2], -1)
    return Image.fromarray((255 * bars).astype(np.uint8))


def to_tensor(*images: Image.Image) -> torch.Tensor:
    """PIL images of one size -> (B, 3, H, W) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])

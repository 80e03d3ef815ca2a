"""Every published layout loads strictly: its own names and shapes, not those of the libraries that read it here."""

import shutil
from pathlib import Path

import published_names as published
import pytest
import torch
from reward_toys import PICTURES, PROMPTS, to_tensor

from rewards import RewardError
from rewards._load import CONSTANTS
from rewards.blip import Blip, BlipConfig
from rewards.clip import Clip, ClipConfig
from rewards.dino import Dino, DinoConfig
from rewards.mps import MPSConfig, Network
from rewards.siglip import Siglip, SiglipConfig

SMALL = {"width": 32, "layers": 2, "inner": 64}
VISION = SMALL | {"side": 32, "patch": 8}


def folder_of(source: Path, to: Path, shapes: published.Shapes) -> Path:
    """The source's config, tokenizer and preprocessing beside weights of the published names."""
    from safetensors.torch import save_file

    shutil.copytree(source, to, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(tensor.numel())[None]
        elif "norm" in name.lower() and name.endswith("weight"):
            tensor.add_(1)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def words_of(folder: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).text_config.vocab_size


def text_of(folder: Path) -> dict[str, int]:
    return SMALL | {"words": words_of(folder), "length": 16}


def without_one(shapes: published.Shapes) -> tuple[published.Shapes, str]:
    gone = next(name for name in shapes if "layer" in name and name.endswith("weight"))
    return {name: shape for name, shape in shapes.items() if name != gone}, gone


def loads(reward_of, source: Path, shapes: published.Shapes, folder: Path) -> None:
    """Accepted as it is, and refused with any other name."""
    images = to_tensor(*(picture(40, 40) for picture in PICTURES))
    scores = reward_of(str(folder_of(source, folder / "whole", shapes)))(images, PROMPTS)
    assert scores.std() > 0
    fewer, gone = without_one(shapes)
    renamed = fewer | {f"{gone}_": shapes[gone]}
    with pytest.raises(RewardError, match=r"has no weights for|has weights that the model has no place for"):
        reward_of(str(folder_of(source, folder / "renamed", renamed)))


def test_clip(tiny_clip, tmp_path):
    loads(lambda m: Clip(ClipConfig(model=m)), tiny_clip, published.clip(text_of(tiny_clip), VISION, 24), tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_siglip(version, tiny_siglips, tmp_path):
    source = tiny_siglips[version]
    shapes = published.siglip(text_of(source), VISION)
    loads(lambda m: Siglip(SiglipConfig(model=m)), source, shapes, tmp_path)


def test_siglip_naflex(tiny_naflex, tmp_path):
    shapes = published.siglip(text_of(tiny_naflex), VISION, naflex=True)
    loads(lambda m: Siglip(SiglipConfig(model=m)), tiny_naflex, shapes, tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_dino(version, tiny_dino, tmp_path):
    PICTURES[0](40, 40).save(tmp_path / "reference.png")
    source = tiny_dino
    if version == 1:
        from transformers import ViTConfig, ViTModel

        settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        source = tmp_path / "vit"
        ViTModel(ViTConfig(**settings, image_size=28, patch_size=7)).save_pretrained(source)
        shutil.copy(tiny_dino / "preprocessor_config.json", source)
    shapes = published.dino(32, 2, 64, 28, 7, version=version)
    loads(lambda m: Dino(DinoConfig(model=m, reference=str(tmp_path / "reference.png"))), source, shapes, tmp_path)


def test_blip(tiny_blip_files, tmp_path):
    from transformers import BlipConfig as HFConfig
    from transformers import BlipForImageTextRetrieval, BlipImageProcessorPil

    shared = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = shared | {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    text = shared | {"hidden_size": 24, "intermediate_size": 48, "vocab_size": 64, "encoder_hidden_size": 32}
    config = HFConfig(vision_config=vision, text_config=text | {"is_decoder": True}, image_text_hidden_size=16)
    source = shutil.copytree(tiny_blip_files["tokenizer"], tmp_path / "source")
    BlipForImageTextRetrieval(config).save_pretrained(source)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(source)
    shapes = published.blip_itm({"width": 24, "layers": 2, "inner": 48, "words": 64}, VISION, 16)
    loads(lambda m: Blip(BlipConfig(model=m)), source, shapes, tmp_path)


TEXT_H = {"width": 1024, "layers": 24, "inner": 4096, "words": 49408, "length": 77}
VISION_H = {"width": 1280, "layers": 32, "inner": 5120, "side": 224, "patch": 14}


def test_hpsv2_at_real_size():
    """open_clip's network of the name that the reward builds, on no device."""
    import open_clip

    with torch.device("meta"):
        network = open_clip.create_model("ViT-H-14", load_weights=False, device="meta")
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == published.open_clip(TEXT_H, VISION_H, 1024)


def test_mps_at_real_size(tmp_path):
    from transformers import CLIPConfig

    shared = {"num_attention_heads": 16, "hidden_act": "gelu"}
    text = shared | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = shared | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024).save_pretrained(tmp_path)
    with torch.device("meta"):
        network = Network(MPSConfig(model=str(tmp_path)))
    wanted = {f"model.{name}": shape for name, shape in published.clip(TEXT_H, VISION_H, 1024).items()}
    wanted |= published.mps_cross(1024, 4, 16)
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == {name: shape for name, shape in wanted.items() if not name.endswith(CONSTANTS)}

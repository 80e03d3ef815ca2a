"""Tiny checkpoints in stock formats."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_checkpoints
import tiny_detectors as tiny_detectors_of
import tiny_vlms
import torch
from judge_server import judging
from reward_toys import randomise, to_tensor


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
    config = CLIPConfig(text_config=text, vision_config=shared | {"image_size": 32, "patch_size": 8}, projection_dim=24)
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


@pytest.fixture
def finite_differences():
    """Asserts that a float64 reward's gradient along a random direction is that of central differences.

    Rounding has no derivative: the reward's own preprocessing is replaced by one without it.
    """
    from dataclasses import replace

    def check(reward, prompts, picture, step: float = 1e-5) -> None:
        for holder in (reward, *reward.children()):
            if getattr(getattr(holder, "preprocess", None), "pil_exact", False):
                holder.preprocess = replace(holder.preprocess, pil_exact=False)
        images = (0.8 * to_tensor(picture).double() + 0.1).requires_grad_()
        direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
        with torch.no_grad():
            ahead, behind = (reward(images + h * direction, prompts).sum() for h in (step, -step))
        slope = (ahead - behind) / (2 * step)
        assert abs(slope) > 1e-8
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)

    return check


@pytest.fixture(scope="session")
def tiny_siglips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """SigLIP's version -> a SiglipModel folder of 32-pixel images."""
    folder = tmp_path_factory.mktemp("tiny_siglip")
    return {version: tiny_checkpoints.siglip(folder / str(version), version=version) for version in (1, 2)}


@pytest.fixture(scope="session")
def tiny_naflex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Siglip2Model folder."""
    return tiny_checkpoints.naflex(tmp_path_factory.mktemp("tiny_naflex"))


@pytest.fixture(scope="session")
def tiny_blip_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files in BLIP's layout, {imagereward, cyclereward, blip}, and the folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_blip")
    tiny_checkpoints.published_reward(folder / "imagereward", (0, 2, 4, 6, 7), seed=0)
    tiny_checkpoints.published_reward(folder / "cyclereward", (0, 2, 4, 6, 8), seed=1)
    tiny_checkpoints.published_blip(folder / "blip", seed=9)
    tiny_checkpoints.bert_tokenizer(folder / "tokenizer")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def tiny_mps(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory):
    """MPS's file and the network that is pickled in it."""
    file = tmp_path_factory.mktemp("tiny_mps") / "MPS_overall_checkpoint.pth"
    return file, tiny_checkpoints.published_mps(file, tiny_clip)


@pytest.fixture(scope="session")
def tiny_lpips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Backbone and heads of LPIPS on AlexNet, random."""
    return tiny_checkpoints.lpips_files(tmp_path_factory.mktemp("tiny_lpips"))


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dinov2Model folder."""
    return tiny_checkpoints.dino(tmp_path_factory.mktemp("tiny_dino"))


@pytest.fixture(scope="session")
def tiny_detectors(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of zero-shot detectors: owlvit, owlv2 and grounding-dino."""
    folder = tmp_path_factory.mktemp("tiny_detectors")
    found = {kind: tiny_detectors_of.owl(folder / kind, tiny_clip, kind) for kind in ("owlvit", "owlv2")}
    return found | {"grounding-dino": tiny_detectors_of.grounding_dino(folder / "grounding-dino")}


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Qwen2-VL, with HPSv3.safetensors and an instruction in it."""
    folder = tmp_path_factory.mktemp("tiny_qwen")
    tiny_vlms.hpsv3(folder, tiny_vlms.qwen(folder))
    return folder


@pytest.fixture(scope="session")
def judge_url() -> Iterator[str]:
    """A chat endpoint on loopback, for as long as the tests run."""
    with judging() as judge:
        yield judge.url

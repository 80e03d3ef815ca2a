"""Builders of tiny checkpoints in the layouts in which the real ones are published."""

import sys
import types
from pathlib import Path

import torch
from blip_reference import TINY, Head, Pretrained
from reward_toys import randomise
from torch import nn

from rewards._cross import CrossModel

TINY_SIZES = {
    "vision_hidden_size": 32,
    "vision_intermediate_size": 64,
    "vision_num_hidden_layers": 2,
    "vision_num_attention_heads": 2,
    "vision_image_size": 32,
    "vision_patch_size": 8,
    "text_vocab_size": 64,
    "text_hidden_size": 24,
    "text_intermediate_size": 48,
    "text_num_hidden_layers": 2,
    "text_num_attention_heads": 2,
}
"""blip_reference.TINY as a setting of the BLIP rewards."""


def bert_tokenizer(folder: Path) -> Path:
    """A WordPiece vocabulary of 62 entries; two more are added by who uses it."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    words += ["red", "blue", "green", "circle", "square"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


class PublishedReward(nn.Module):
    """What ImageReward.pt and CycleReward-*.pth hold: `blip.*` and `mlp.*`."""

    def __init__(self, numbers: tuple[int, ...], sizes: dict = TINY):
        super().__init__()
        self.blip = Pretrained(**sizes)
        self.mlp = Head(sizes["text"]["width"], numbers)


def published_reward(file: Path, numbers: tuple[int, ...], seed: int) -> PublishedReward:
    """Writes the file and returns the network whose it is."""
    network = PublishedReward(numbers)
    randomise(network, seed)
    torch.save(network.state_dict(), file)
    return network.eval()


def published_blip(file: Path, seed: int) -> Pretrained:
    """BLIP's own file: with a matching head, momentum copies and queues, below the key "model"."""
    network = Pretrained(**TINY)
    network.itm_head = nn.Linear(TINY["text"]["width"], 2)
    randomise(network, seed)
    state = network.state_dict()
    extra = {"visual_encoder_m.cls_token": torch.zeros(1, 1, 32), "image_queue": torch.zeros(256, 8)}
    torch.save({"model": state | extra | {"temp": torch.tensor(0.07)}}, file)
    return network.eval()


def siglip(folder: Path, *, version: int) -> Path:
    """A SiglipModel folder: version 1 with a sentencepiece vocabulary and a bicubic squash, 2 with BPE and bilinear."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    words = sentencepiece(folder) if version == 1 else byte_pairs(folder)
    config = SiglipConfig(text_config=siglip_text(words), vision_config=SMALL | {"image_size": 32, "patch_size": 8})
    network = randomise(SiglipModel(config), seed=4 + version)
    with_temperature(network).save_pretrained(folder)
    resample = {1: 3, 2: 2}[version]
    SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=resample).save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def siglip_text(words: int) -> dict:
    """Settings of a text tower with 16 positions."""
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return SMALL | tokens | {"vocab_size": words, "max_position_embeddings": 16, "projection_size": 32}


def with_temperature(network):
    """A scale and a bias as they are after training."""
    with torch.no_grad():
        network.logit_scale.fill_(2.3)
        network.logit_bias.fill_(-3.0)
    return network


def naflex(folder: Path) -> Path:
    """A Siglip2Model folder: 4 x 4 positions of patches of 8 pixels, at most 20 patches an image."""
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    vision = SMALL | {"num_patches": 16, "patch_size": 8}
    config = Siglip2Config(text_config=siglip_text(byte_pairs(folder)), vision_config=vision)
    with_temperature(randomise(Siglip2Model(config), seed=7)).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20).save_pretrained(folder)
    return folder


def sentencepiece(folder: Path) -> int:
    """Trains a tokenizer on a few sentences; returns its number of entries."""
    import sentencepiece as spm
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    text = [f"a {colour} {shape} on the {side}" for colour in ("red", "blue", "green") for shape in
            ("circle", "square", "star") for side in ("left", "right")]  # fmt: skip
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(folder / "spiece"), vocab_size=44, pad_id=-1, bos_id=-1,
        eos_id=1, unk_id=2, control_symbols=["<ctrl>"], minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def byte_pairs(folder: Path) -> int:
    """As Gemma's: BPE with byte fallback, end token; lower-casing is left to who uses it."""
    from tokenizers import Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\u2581"
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *letters, "re", "red"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("r", "e"), ("re", "d")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def head(file: Path, prefix: str, width: int, numbers: tuple[int, ...], seed: int, dtype=torch.float32) -> Path:
    """A stack of linear layers PREFIX.N from `width` to 1."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [width, 16, 12, 8, 4, 1]
    tensors = {}
    for number, inner, outer in zip(numbers, sizes, sizes[1:], strict=False):
        tensors[f"{prefix}.{number}.weight"] = (torch.randn(outer, inner, generator=generator) / inner**0.5).to(dtype)
        tensors[f"{prefix}.{number}.bias"] = torch.randn(outer, generator=generator).to(dtype)
    torch.save(tensors, file)
    return file


MPS_SIZES = (24, 2, 2)
"""Width, layers and heads of the tiny cross-attention."""


class PublishedMPS(nn.Module):
    """What MPS's file holds, with the constants that it carries along."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.model = clip
        self.cross_model = CrossModel(*MPS_SIZES)
        for pair in self.cross_model.layers:
            pair[1].fn.register_buffer("inv_freq", torch.ones(32))
            for added in pair:  # layer norms without a bias: there it is a constant
                bias = added.fn.norm.bias.detach()
                del added.fn.norm.bias
                added.fn.norm.register_buffer("bias", bias.zero_())


def published_mps(file: Path, clip: Path) -> PublishedMPS:
    """A pickled module whose classes cannot be imported when it is read, as is the case with the published file."""
    from transformers import CLIPModel

    network = PublishedMPS(CLIPModel.from_pretrained(clip, dtype=torch.float32)).eval()
    randomise(network.cross_model, seed=6)
    home = sys.modules["somebodys_models"] = types.ModuleType("somebodys_models")
    original = {kind: kind.__module__ for kind in (PublishedMPS, CrossModel)}
    for kind in original:
        setattr(home, kind.__name__, kind)
        kind.__module__ = "somebodys_models"
    torch.save(network, file)
    for kind, module in original.items():
        kind.__module__ = module
    del sys.modules["somebodys_models"]
    return network


def lpips_files(folder: Path, network: str = "alex") -> tuple[Path, Path]:
    """torchvision's backbone, random, and LPIPS's weights, random and positive, as they are published."""
    from rewards.lpips import NETWORKS, _features

    features = nn.ModuleDict({"features": randomise(_features(network), seed=7, std=0.05)})
    state = features.state_dict() | {"classifier.6.bias": torch.zeros(1000)}
    torch.save(state, folder / f"{network}.pth")
    taps = NETWORKS[network][0]
    widths = [features["features"][tap - 1].out_channels for tap in taps]
    generator = torch.Generator().manual_seed(8)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for k, w in enumerate(widths)}
    torch.save(heads, folder / f"{network}-heads.pth")
    return folder / f"{network}.pth", folder / f"{network}-heads.pth"


def dino(folder: Path) -> Path:
    """A Dinov2Model folder: 28-pixel crops of images whose short side is 32."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    randomise(Dinov2Model(config), seed=10).save_pretrained(folder)
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    return folder

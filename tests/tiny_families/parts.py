"""Tiny parts that several families are built from, with random weights to which prompts, sizes and times matter."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
SIZES = ((32, 32), (32, 64))  # pixels; families of larger tokens have their own
WORDS = 16


def scheduler(config: Mapping[str, Any]) -> Any:
    """The published scheduler; PNDM's place is taken by DDIM, whose first-order step both share."""
    import diffusers

    settings = dict(config)
    name = settings.pop("_class_name").replace("PNDMScheduler", "DDIMScheduler")
    return getattr(diffusers, name).from_config(settings)


def livelier(module: Any, gain: float = 1.5) -> Any:
    """Fresh weights give almost constant outputs: matrices are scaled, and what starts at zero is drawn."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
            elif parameter.ndim > 1:
                parameter.mul_(gain)
    return module.eval()


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    symbols = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=WORDS)


def clip_text(*, width: int = 16, projection: int | None = None) -> Any:
    """A CLIP text model, with the projection that SDXL and SD3 read if its width is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=1,
    )
    return livelier((CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config))


def tokenizer(**options: Any) -> Any:
    """One token a character, ended by </s>."""
    from tokenizers import processors

    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _tokenizer(LETTERS, ".", ending)


def chat_tokenizer(*, begins: bool = False) -> Any:
    """One token a word or sign, for language models; thinking or not can be seen in its template."""
    from tokenizers import processors

    beginning = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    template = "<user> {{ messages[0].content }} <answer> {% if enable_thinking %} think {% endif %}"
    words = ["a", "red", "circle", "two", "stars", "blue", *"<>|,:.", "user", "answer", "think"]
    return _tokenizer(words, r"\w+|[^\w\s]", beginning if begins else None, chat_template=template)


def _tokenizer(symbols: Iterable[str], pattern: str, ending: Any, **options: Any) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: number for number, symbol in enumerate(["<pad>", "</s>", "<unk>", *symbols])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "removed", invert=True), pre_tokenizers.Split(Regex(pattern), "isolated")]
    )
    if ending is not None:
        inner.post_processor = ending
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="right", **special, **options)


def t5(*, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return livelier(T5EncoderModel(config), 1.0)


def qwen3(*, causal: bool = True) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        vocab_size=len(chat_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return livelier((Qwen3ForCausalLM if causal else Qwen3Model)(config))


def vae(**options: Any) -> Any:
    """Eight pixels a latent would need four levels; two levels and two pixels do."""
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "sample_size": 32,
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
    }
    return livelier(AutoencoderKL(**{**settings, **options}))


def stock(pipeline: Any, prompts: list[str], z: torch.Tensor, size: tuple[int, int], **options: Any) -> Any:
    """What the stock pipeline makes of x_T = z (before its own scaling); latents unless output_type says otherwise."""
    settings = {"output_type": "latent", "height": size[0], "width": size[1], **options}
    return pipeline(prompt=prompts, latents=z.clone(), **settings).images


def reconstruct(pipeline: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] through the autoencoder, without noise."""
    with torch.no_grad():
        mean = pipeline.vae.encode(2 * pixels - 1).latent_dist.mean
        return (pipeline.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)

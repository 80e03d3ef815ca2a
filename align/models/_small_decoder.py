"""A small decoder in place of the autoencoder's, where a reward's gradient goes through it: diffusers' AutoencoderTiny.

TAESD (github.com/madebyollin/taesd, MIT) is made for previews: it takes the latents as the network has them, scaled and
shifted, and its pictures are near the autoencoder's, not equal. So training alone decodes by it; samples, panels and
the report decode in full.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError
from align.models._base import DiffusionModel
from align.models._codec import KLCodec
from align.models._network import dtype_keyword

CLASS = "AutoencoderTiny"
KNOWN = {
    "madebyollin/taesd": 4,
    "madebyollin/taesdxl": 4,
    "madebyollin/taesd3": 16,
    "madebyollin/taef1": 16,
}
"""Latent channels of those whose weights are MIT; all else of their configs is the class's default."""


def small_codec(source: str, model: DiffusionModel) -> KLCodec:
    """What decodes `model`'s latents by the decoder at `source`, a folder or Hub id: frozen, in the autoencoder's dtype
    and on its device, on the meta device without weights. It is no encoder of the model's.

    Raises UserError where it cannot be loaded, or is made for other latents.
    """
    where = f"sampling.levers.decoder={source}"
    own, vae = model.small_decoders, model.codec.vae  # type: ignore[attr-defined]  # families with pipelines have both
    if source in KNOWN and source not in own:
        use = f"Use {' or '.join(own)}, or remove it" if own else "There is none for this family: remove it"
        raise UserError(f"{where}: is made for another family's latents. {use}.")
    meta = next(vae.parameters()).is_meta
    with _saying(where):
        config = {"_class_name": CLASS, "latent_channels": KNOWN[source]} if meta and source in KNOWN else _read(source)
    found = KLCodec(_made(source, config, where, vae, meta=meta), chunk=getattr(model.codec, "chunk", None))
    for name, word in (("channels", "channels of a latent"), ("factor", "pixels along each side of a latent")):
        if (has := getattr(found, name)) != (needs := getattr(model.codec, name)):
            raise UserError(f"{where}: has {has} {word}, and the model's autoencoder {needs}. Use one made for it.")
    return found


def _made(source: str, config: Mapping[str, Any], where: str, like: Any, *, meta: bool) -> Any:
    if (kind := config.get("_class_name")) != CLASS:
        raise UserError(f"{where}: is a {kind}, and a small decoder is diffusers' {CLASS}. Give one, or remove it.")
    with _saying(where):
        if meta:
            with torch.device("meta"):
                vae = _kind().from_config(config)
        else:
            options = {"use_safetensors": True, "output_loading_info": True, dtype_keyword(): like.dtype}
            vae, told = _kind().from_pretrained(_place(source), **options)
            if astray := [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]:
                raise ValueError(f"{len(astray)} of its weights are missing or astray, the first is {astray[0]}.")
    torch.nn.Module.to(vae, device=like.device, dtype=like.dtype)  # the class warns of an empty list of modules
    return vae.eval().requires_grad_(False)


def _read(source: str) -> Mapping[str, Any]:
    place = _place(source)
    return _kind().load_config(place, local_files_only=Path(place).is_dir())


def _kind() -> Any:
    import diffusers

    return getattr(diffusers, CLASS)


def _place(source: str) -> str:
    return str(path) if (path := Path(source).expanduser()).exists() else source


@contextmanager
def _saying(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # diffusers, safetensors and the HTTP client each raise their own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: it could not be loaded: {first_line}") from error

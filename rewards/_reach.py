"""Whether a model can be had from the Hub, asked once and at once: its clients try each file for a minute."""

from functools import cache
from pathlib import Path

from rewards._errors import RewardError

PATIENCE = 10.0  # seconds


@cache
def reach(model: str) -> None:
    """Raises a RewardError in one line where `model` is a Hub id that is not in the machine's cache, and the Hub does
    not answer. What it answers is left to the libraries."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    here = Path(model).expanduser().exists() or model.count("/") != 1 or model.startswith(("/", ".", "~"))
    if here or constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    try:
        address = hf_hub_url(model, "config.json")
        get_session().head(address, headers=build_hf_headers(), timeout=PATIENCE)
    except Exception as error:  # of the transport, whichever it is
        raise RewardError(
            f"{model} could not be loaded: {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}). "
            "Check the network and HF_ENDPOINT, or give a local folder in its place: `align rewards NAME` lists a "
            "reward's settings."
        ) from None

"""The config of a model's network, read without its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.files.texts import Unreadable, json_value, read_text
from align.models._load import CheckpointConfig
from align.models._network import is_file

FILE_NAME = "config.json"


def network_config(family: Any, config: CheckpointConfig) -> Mapping[str, Any]:
    """What the network's config sets, of the checkpoint or of `network`; {} for a published checkpoint's or a single
    file's where that is as the class has it."""
    apart = config.network if config.network is not None and not is_file(config.network) else None
    source = apart or config.config_dir or config.checkpoint
    folder = Path(source).expanduser()
    if folder.is_file() or folder.suffix == ".safetensors":
        return {}
    if folder.is_dir():
        places = (folder / family.network_name / FILE_NAME, *((folder / FILE_NAME,) if apart else ()))
        file = next((place for place in places if place.is_file()), places[0])
        try:
            found = json_value(read_text(file), str(file))
        except Unreadable as error:
            raise UserError(str(error)) from None
        return found if isinstance(found, dict) else {}
    known = {one.checkpoint: one.network for one in family.published}
    return known[source] if source in known else _of_the_hub(family, source, None if apart else config.revision)


def _of_the_hub(family: Any, source: str, revision: str | None) -> Mapping[str, Any]:
    import diffusers

    network = getattr(diffusers, family.network_class)
    try:
        return network.load_config(source, subfolder=family.network_name, revision=revision)
    except OSError:
        pass
    try:
        return network.load_config(source, revision=revision)
    except Exception as error:  # diffusers and the HTTP client each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: the config of its network is neither cached nor to be had ({reason}).") from None

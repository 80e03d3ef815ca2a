"""What lies on disk behind settings: other weights or code under the same name make other images and other scores."""

from pathlib import Path
from typing import Any

from align.registry import resolve_embedded

MOST_PATH, MOST_NAME = 1024, 255  # characters of a path, bytes of a name in it; a longer setting is text
WEIGHTS = (".safetensors", ".json")  # of an adapter or a solver, in its folder or in its run's


def stamps(value: Any) -> list[Any]:
    """[place, size, time] of the files behind every checkpoint, adapter, solver and function that settings name. What
    is on the Hub goes by its name and revision."""
    if isinstance(value, dict):  # a component's name is no path, unless it is code
        value = [item for key, item in value.items() if key != "name" or ":" in str(item)]
    if isinstance(value, list):
        return [found for item in value if (found := stamps(item))]
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_PATH:
        return []
    if max(len(name.encode()) for name in value.split("/")) > MOST_NAME:  # such as a long question to a judge
        return []
    path = Path(resolve_embedded(value)).expanduser()
    before = Path(value.partition(":")[0]).expanduser()  # my_rewards.py:warmth, loras:lcm.safetensors
    files = [file for file in (path, before) if file.is_file()]
    if any((path / name).is_file() for name in ("model_index.json", "config.json")):
        files += sorted(file for file in path.rglob("*") if file.is_file())  # settings and vocabularies too
    else:
        inside = [file for pattern in ("*", "adapter/*") for file in before.glob(pattern)]
        files += sorted(file for file in inside if file.suffix in WEIGHTS and file.is_file())
    named = {str(file.relative_to(path)) if path in file.parents else file.name: file.stat() for file in files}
    return [[name, status.st_size, status.st_mtime_ns] for name, status in named.items()]

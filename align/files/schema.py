"""A JSON Schema in which what is said often is said once."""

import hashlib
import json
from collections import Counter
from typing import Any

SHORT = 200  # letters; what is shorter is repeated


def shared(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with every object that occurs more than once under $defs, and a $ref in its places."""
    counts: Counter[str] = Counter()
    _count(schema, counts)
    definitions: dict[str, Any] = {}
    root = {key: _moved(value, counts, definitions) for key, value in schema.items()}
    return {**root, "$defs": {**root.get("$defs", {}), **definitions}}


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict) and ("properties" in value or "oneOf" in value or "anyOf" in value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _count(value: Any, counts: Counter[str]) -> None:
    if _is_schema(value) and len(text := _text(value)) > SHORT:
        counts[text] += 1
        if counts[text] > 1:
            return  # its parts are counted already
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _count(inner, counts)


def _moved(value: Any, counts: Counter[str], definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_moved(inner, counts, definitions) for inner in value]
    if not isinstance(value, dict):
        return value
    if not _is_schema(value) or counts[text := _text(value)] < 2:
        return {key: _moved(inner, counts, definitions) for key, inner in value.items()}
    name = f"{value.get('title', 'Any')}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    if name not in definitions:
        definitions[name] = {}  # its place
        definitions[name] = {key: _moved(inner, counts, definitions) for key, inner in value.items()}
    return {"$ref": f"#/$defs/{name}"}

"""Settings: frozen pydantic models that refuse unknown keys and say in plain words what is wrong and what to do."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rewards._card import UNKNOWN, UNSTATED, Card, licence_of

_EXPLAINED = "setting"  # the type of an error whose message is already ours


class ComponentConfig(BaseModel):
    """The settings of one component: frozen, unknown keys refused, each field documented by the text below it."""

    meant: ClassVar[Mapping[str, str]] = {}
    """{a key that others like it have: the one here that does its work}."""
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def conflicts(self, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(key path, what is wrong and what to do) for every setting that is fine in itself but cannot work with the
        rest of the recipe or on this machine. `recipe` holds the configs of those blocks that are valid. A path is
        from the recipe's root (`sampling.num_steps`), or with a leading dot from this component (`.model`)."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(cls.__name__, _explain(cls, value, error.errors())) from None


class RewardConfig(ComponentConfig):
    """What every reward's config has; `name` is declared by each."""

    weight: float = 1.0
    """Factor of this reward in the weighted sum; a negative one trains against it."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Budget for activations: batches that need more are scored in pieces. Default: none."""
    offload: bool = False
    """Keep the weights in CPU memory between uses."""
    licence: str | None = None
    """Of weights of your own: an SPDX name, such as MIT; what is published elsewhere is known."""

    card: ClassVar[Card] = UNKNOWN
    """What the reward is, in words; declared by each."""
    reads_latents: ClassVar[bool] = False
    """Whether it can do without decoded images."""

    def licences(self) -> dict[str, str]:
        """{part: SPDX name or "unstated"} of all that these settings put behind the score."""
        return {part: self._stated(licence) for part, licence in self.card.licences.items()}

    def licence_text(self) -> str:
        """The licences in one line."""
        return ", ".join(f"{licence} ({part})" for part, licence in self.licences().items()) or "Apache-2.0"

    def _of_checkpoint(self, model: str) -> dict[str, str]:
        """The licence of a checkpoint that a setting names."""
        return {model: self._stated(licence_of(model))}

    def _stated(self, licence: str) -> str:
        return self.licence if licence == UNSTATED and self.licence else licence

    def has_gradient(self) -> bool:
        """Whether scores carry a gradient back to the pixels; a property of the settings, known before building."""
        return True

    def unreadable(self, prompts: Iterable[str]) -> Iterator[str]:
        """What is wrong, and what to write instead, for each of these prompts that could not be scored. Known before
        building; asked before a training or an evaluation begins. A reward that takes any text leaves this as it is."""
        yield from ()

    def demanding(self) -> bool:
        """Whether there are prompts that it cannot score."""
        return type(self).unreadable is not RewardConfig.unreadable


def suggest(word: str, known: Iterable[str]) -> str:
    """' Did you mean "clip"?' for a word close to a known one, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def _explain(config: type[BaseModel], value: Any, errors: list[ErrorDetails]) -> list[InitErrorDetails]:
    """One error a setting, in our words: the branches of a union that all failed are one problem, not several."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in errors:
        found.setdefault(_path(value, error), []).append(error)
    return [
        InitErrorDetails(
            type=PydanticCustomError(
                _EXPLAINED,
                "{text}",
                {"text": _text(config, path, several), "wants_text": any(map(wants_text, several))},
            ),
            loc=path,
            input=several[0]["input"],
        )
        for path, several in found.items()
    ]


def wants_text(error: ErrorDetails) -> bool:
    """Whether text would be right where something else was given."""
    return error["type"] == "string_type" or bool(error.get("ctx", {}).get("wants_text"))


def _path(value: Any, error: ErrorDetails) -> tuple[int | str, ...]:
    """The error's location without the names that pydantic gives to the branches of a union."""
    path: list[int | str] = []
    for key in error["loc"]:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        elif not (error["type"] in ("missing", _EXPLAINED) and key == error["loc"][-1]) and path:
            continue
        path.append(key)
    return tuple(path)


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "finite": "a finite number",
    "none": "null",
}
_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<")}
_BOUNDS["less_than_equal"] = ("le", "<=")


def _text(config: type[BaseModel], path: tuple[int | str, ...], errors: list[ErrorDetails]) -> str:
    first = errors[0]
    if first["type"] == _EXPLAINED:
        return first["msg"]
    if first["type"] == "extra_forbidden":
        known = list(config.model_fields)
        meant = getattr(config, "meant", {}).get(str(path[-1]))
        said = f" Did you mean {meant}?" if meant and len(path) == 1 else suggest(str(path[-1]), known)
        return f"unknown key.{said} Known here: {', '.join(known) or 'none'}; or remove it."
    field = config.model_fields.get(str(path[0])) if len(path) == 1 else None
    if first["type"] == "missing":
        about = " ".join((field.description or "").split()) if field else ""
        return f"is missing. Set it{': ' + about if about else '.'}"
    if any(error["type"] in ("value_error", "assertion_error") for error in errors):
        return str(first.get("ctx", {}).get("error", first["msg"]))
    leaf, said = str(path[-1]) if path else "it", repr(first["input"])
    has_default = field is not None and not field.is_required() and field.default_factory is None
    default = f" (default: {field.default!r})" if field is not None and has_default else ""
    if first["type"] in _BOUNDS:
        key, sign = _BOUNDS[first["type"]]
        return f"is {said}. Set {leaf} {sign} {first.get('ctx', {})[key]}{default}."
    expected = " or ".join(dict.fromkeys(_expected(error) for error in errors))
    options = [str(option) for error in errors if error["type"] == "literal_error" for option in _options(error, field)]
    return f"is {said}.{suggest(str(first['input']), options)} Set {leaf} to {expected}{default}."


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind in ("too_short", "too_long"):
        return error["msg"].partition("should ")[2] or error["msg"]
    return _EXPECTED.get(kind.partition("_")[0], error["msg"])


def _options(error: ErrorDetails, field: Any) -> list[Any]:
    return list(get_args(field.annotation)) if field is not None else []

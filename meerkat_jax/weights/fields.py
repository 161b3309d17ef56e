"""What a published config says of a tower, and refusals by the name of the field.

Fields that a config.json leaves out have the defaults of transformers' config class; a value that
our module cannot compute with is a UserError, never left aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meerkat_jax.core.errors import UserError


def section(
    config: Mapping[str, Any], whole: str, alone: str, names: Sequence[str], where: str
) -> tuple[Mapping[str, Any], str]:
    """A tower's own fields, and the place before their names in errors ("FILE: vision_config.").

    They are a section of a config whose model_type is `whole` (the first of `names` that is there),
    or all of one whose model_type is `alone`. UserError for other models.
    """
    kind = config.get("model_type")
    if kind == alone:
        return config, f"{where}: "
    if kind != whole:
        raise UserError(f"{where}: model_type is {kind!r}, expected {whole!r} or {alone!r}")
    name = next((name for name in names if config.get(name) is not None), names[-1])
    own = config.get(name) or {}
    if not isinstance(own, Mapping):
        raise UserError(f"{where}: {name} is {own!r}, expected an object of fields")
    return own, f"{where}: {name}."


def require(config: Mapping[str, Any], only: Mapping[str, tuple], place: str) -> None:
    """UserError for each field that is there and has none of the values that our module knows."""
    wrong = [
        f"{place}{name} is {config[name]!r}, supported: {' or '.join(map(repr, values))}"
        for name, values in only.items()
        if config.get(name, values[0]) not in values
    ]
    if wrong:
        raise UserError("; ".join(wrong))


def size(config: Mapping[str, Any], name: str, default: int, place: str) -> int:
    """A field that is a whole number above 0."""
    value = config.get(name, default)
    if not _is_size(value):
        raise UserError(f"{place}{name} is {value!r}, expected a whole number above 0")
    return value


def ratio(config: Mapping[str, Any], name: str, default: float, place: str) -> float:
    """A field that is a number above 0."""
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{place}{name} is {value!r}, expected a number above 0")
    return value


def sizes(
    config: Mapping[str, Any], name: str, default: Sequence[int], place: str
) -> tuple[int, ...]:
    """A field that is a list of whole numbers above 0."""
    value = config.get(name, default)
    if not isinstance(value, list | tuple) or not value or not all(map(_is_size, value)):
        raise UserError(f"{place}{name} is {value!r}, expected a list of whole numbers above 0")
    return tuple(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require_multiple(place: str, name: str, value: int, of: str, part: int) -> None:
    """UserError unless field `name` is a multiple of field `of`."""
    if value % part:
        raise UserError(f"{place}{name} is {value}, expected a multiple of {of}, which is {part}")

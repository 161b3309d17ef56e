"""Checks a value against a JSON Schema, and says in plain words what is wrong where.

Of JSON Schema (draft 2020-12) it knows the keywords in `KEYWORDS`, which are those that our schemas
use; a schema with another one is refused, so that nothing in it goes unheeded. Values are what
`json` reads. Each fault has a reason that is the same for its like (indices left out) and a detail
with the place and the value.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from meerkat_jax.data.sources.reading import shown
from meerkat_jax.data.sources.skips import Bad

NOTES = {"$schema", "$id", "$defs", "title", "description", "default", "examples"}
KEYWORDS = {
    "$ref", "type", "enum", "const", "properties", "required", "dependentRequired",
    "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "anyOf", "allOf", "if", "then",
}  # fmt: skip

TYPES = {
    "object": ("an object", lambda value: isinstance(value, dict)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "string": ("a text", lambda value: isinstance(value, str)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "number": (
        "a number",
        lambda value: (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        ),
    ),
}


def load(path: Path) -> dict[str, Any]:
    """Read a schema; ValueError for a keyword that would go unheeded."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    _check_keywords(schema)
    return schema


def _check_keywords(schema: Mapping[str, Any]) -> None:
    unknown = set(schema) - KEYWORDS - NOTES
    if unknown:
        raise ValueError(f"schema keywords {sorted(unknown)} are not known")
    below = [*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("prefixItems", ())]
    below += [schema[key] for key in ("items", "if", "then") if key in schema]
    for key in ("properties", "$defs"):
        below += schema.get(key, {}).values()
    for part in below:
        _check_keywords(part)


def check(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str = "") -> None:
    """Bad unless `value`, which stands at `at` in a row, is as `schema` says."""
    if "$ref" in schema:
        check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    _check_kind(value, schema, at)
    if isinstance(value, dict):
        _check_object(value, schema, root, at)
    elif isinstance(value, list):
        _check_list(value, schema, root, at)
    for part in schema.get("allOf", ()):
        check(value, part, root, at)
    if "anyOf" in schema and not any(passes(value, part, root) for part in schema["anyOf"]):
        keys = " or ".join(repr(key) for part in schema["anyOf"] for key in part["required"])
        raise _fault(at, f"expected key {keys}", f"has {_keys(value)}")
    if "if" in schema and passes(value, schema["if"], root):
        check(value, schema["then"], root, at)


def passes(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether `value` is as `schema` says."""
    try:
        check(value, schema, root)
    except Bad:
        return False
    return True


def _check_kind(value: Any, schema: Mapping[str, Any], at: str) -> None:
    """Type, and what holds for a text or a number."""
    if "type" in schema:
        kinds = schema["type"]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not any(TYPES[kind][1](value) for kind in kinds):
            raise _value(at, f"expected {' or '.join(TYPES[kind][0] for kind in kinds)}", value)
    if "enum" in schema or "const" in schema:
        allowed = schema["enum"] if "enum" in schema else [schema["const"]]
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise _value(at, f"expected {', '.join(map(shown, allowed))}", value)
    if isinstance(value, str):
        if "pattern" in schema and not _compiled(schema["pattern"]).search(value):
            raise _value(at, f"expected {schema.get('title', schema['pattern'])}", value)
    elif TYPES["number"][1](value):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not (low <= value <= high and value > schema.get("exclusiveMinimum", -math.inf)):
            raise _value(at, f"expected {schema.get('title', 'a number in range')}", value)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # "$" is the end in JSON Schema; Python's would allow a line break there.
    return re.compile(re.sub(r"\$$", r"\\Z", pattern))


def _check_object(value: dict, schema: Mapping[str, Any], root, at: str) -> None:
    known = schema.get("properties", {})
    for key in value:
        if key in known:
            check(value[key], known[key], root, f"{at}.{key}" if at else key)
        elif schema.get("additionalProperties", True) is False:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise _fault(at, "unknown key", f"has {shown(key)}; did you mean {near[0]!r}?")
    needed = [*schema.get("required", ())]
    for key, others in schema.get("dependentRequired", {}).items():
        needed += others if key in value else ()
    for key in needed:
        if key not in value:
            raise _fault(at, f"expected key {key!r}", f"has {_keys(value)}")


def _check_list(value: list, schema: Mapping[str, Any], root, at: str) -> None:
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not least <= len(value) <= most:
        form = schema.get("title") or f"{least} to {most} items"
        raise _value(at, f"expected {form}", value)
    kinds = schema.get("prefixItems", [schema.get("items", {})] * len(value))
    for number, (one, kind) in enumerate(zip(value, kinds, strict=False)):
        check(one, kind, root, f"{at}[{number}]")


def _keys(value: Any) -> str:
    return ", ".join(value)[:80] or "none" if isinstance(value, dict) else shown(value)


def _value(at: str, why: str, value: Any) -> Bad:
    return _fault(at, why, f"is {shown(value)}")


def _fault(at: str, why: str, found: str) -> Bad:
    plain = re.sub(r"\[\d+\]", "", at)
    return Bad(f"{plain}: {why}" if plain else why, f"{at or 'the row'} {found}")

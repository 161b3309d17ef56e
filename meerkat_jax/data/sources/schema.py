"""JSON Schema errors as one plain sentence: what was expected where, and what is there.

`jsonschema` validates (draft 2020-12); its own messages quote whole rows and regular expressions.
Here a fault has a reason that is the same for its like (indices left out) and a detail with the
place and the value. Expectations that no keyword explains are the `title` of their subschema.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from meerkat_jax.data.sources.reading import shown
from meerkat_jax.data.sources.skips import RowError

TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "boolean": "true or false",
    "number": "a number",
}


def _is_number(_: Any, value: Any) -> bool:
    """Python's `json` reads 1e999 as infinity."""
    return type(value) in (int, float) and abs(value) < math.inf


Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number),
)


def load(path: Path) -> Draft202012Validator:
    """The validator of a schema file; raises jsonschema.SchemaError for one that is no schema."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    Validator.check_schema(schema)
    return Validator(schema)


def check(value: Any, validator: Draft202012Validator) -> None:
    """RowError, with the first fault, unless `value` is as the validator's schema says."""
    try:
        error = next(validator.iter_errors(value), None)
    except (RecursionError, ValueError):  # its message would hold the value, which has no repr
        raise RowError("a value is nested too deep, or a number too long") from None
    if error is None:
        return
    at, value = error.json_path.removeprefix("$").removeprefix("."), error.instance
    expected, keys = _expected(error)
    plain = re.sub(r"\[\d+\]", "", at)
    raise RowError(
        f"{plain}: {expected}" if plain else expected,
        f"{at or 'the row'} {f'has {keys}' if keys else f'is {shown(value)}'}",
    )


def _expected(error: ValidationError) -> tuple[str, str]:
    """What a keyword asks for, and which keys are there if it asks for keys."""
    rule, value = error.validator_value, error.instance
    keys = ", ".join(value)[:80] or "none" if isinstance(value, dict) else ""
    match error.validator:
        case "type":
            kinds = [rule] if isinstance(rule, str) else rule
            return f"expected {' or '.join(TYPES[kind] for kind in kinds)}", ""
        case "const" | "enum":
            allowed = rule if error.validator == "enum" else [rule]
            return f"expected {', '.join(map(shown, allowed))}", ""
        case "required":
            return f"expected key {next(key for key in rule if key not in value)!r}", keys
        case "dependentRequired":
            needed = (key for own, others in rule.items() if own in value for key in others)
            return f"expected key {next(key for key in needed if key not in value)!r}", keys
        case "anyOf":
            needed = " or ".join(repr(key) for part in rule for key in part["required"])
            return f"expected key {needed}", keys
        case "additionalProperties":
            known = error.schema["properties"]
            key = next(key for key in value if key not in known)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            return "unknown key", f"{shown(key)}; did you mean {near[0]!r}?"
    return f"expected {error.schema['title']}", ""

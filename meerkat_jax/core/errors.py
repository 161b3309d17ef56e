"""UserError: a wrong file, flag or value, which the user can correct.

Commands print it as a single line without a traceback and exit with code 2; everything else that is
raised is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Bad input. The message names the thing, what was found, what was expected, and the remedy."""


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """The `n` names most like `name`, best first (for error messages)."""
    return difflib.get_close_matches(name, list(names), n=n, cutoff=0.0)


def sample(names: Collection[str], count: int = 3) -> str:
    """How many `names` there are and the first, as "291 (a, b, c, ...)"; one alone as it is."""
    names = list(names)
    if len(names) == 1:
        return names[0]
    more = ", ..." if len(names) > count else ""
    return f"{len(names)} ({', '.join(names[:count])}{more})"


def construct(kind: Callable, fields: Mapping[str, Any], where: str) -> Any:
    """`kind(**fields)`; UserError for a field that is missing, or unknown: naming the nearest one.

    `where` is the place in the config that the fields come from, as in "model.image".
    """
    taken = inspect.signature(kind).parameters
    known = [name for name in taken if name not in ("parent", "name")]  # Flax adds these two
    for key in known:
        if key not in fields and taken[key].default is inspect.Parameter.empty:
            raise UserError(f"config key {where}.{key} is missing; give it a value")
    for key in fields:
        if key not in known:
            near = nearest(key, known, 1)
            raise UserError(f"config key {where}.{key} is unknown; did you mean {where}.{near[0]}?")
    return kind(**fields)


def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples: a config read back from JSON builds the same (hashable) modules."""
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}

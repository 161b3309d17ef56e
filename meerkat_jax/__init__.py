"""Meerkat in JAX: ask about an image and a sound, get words, boxes and seconds.

What a user of the library needs is here, and is imported when it is first used, so that
`import meerkat_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meerkat_jax.api import Meerkat
    from meerkat_jax.data.example import Box, Segment
    from meerkat_jax.inference.answers import Answer

__all__ = ["Answer", "Box", "Meerkat", "Segment"]

_HOMES = {
    "Answer": "meerkat_jax.inference.answers",
    "Box": "meerkat_jax.data.example",
    "Meerkat": "meerkat_jax.api",
    "Segment": "meerkat_jax.data.example",
}


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""The sources by name. A module is imported when its source is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from meerkat_jax.core.errors import UserError, nearest
from meerkat_jax.data.sources.entry import Options, Plan

SOURCES = {  # name -> (module, function)
    "openimages_audioset": ("pairs", "plan_audioset"),
    "openimages_strong": ("pairs", "plan_strong"),
    "openimages_vggsound": ("pairs", "plan_vggsound"),
    "vggss": ("vggss", "plan"),
    "avsbench": ("avsbench", "plan"),
    "pascal_sound": ("pascal_sound", "plan"),
    "flickr_soundnet": ("flickr_soundnet", "plan"),
    "llp": ("llp", "plan"),
    "avqa": ("avqa", "plan"),
    "music_avqa": ("music_avqa", "plan"),
    "valor": ("valor", "plan"),
    "avfit": ("avfit", "plan"),
    "jsonl": ("jsonl", "plan"),
}


def find(source: str) -> Callable[[Path, Options], Plan]:
    """`plan(folder, options)` of a source; UserError naming the nearest for another name."""
    if source not in SOURCES:
        raise UserError(
            f"source {source!r} is unknown; did you mean {nearest(source, SOURCES, 1)[0]!r}? "
            f"(one of {', '.join(SOURCES)})"
        )
    module, function = SOURCES[source]
    return getattr(importlib.import_module(f"meerkat_jax.data.sources.{module}"), function)

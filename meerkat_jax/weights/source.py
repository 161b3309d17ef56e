"""What a checkpoint on disk holds: its config and its tensors by their names on the hub, unread.

Every reader (hub folders, Meta's own layout, LAION's files, GGUF) gives a `Source`, so that one
table per model (weights/clip.py, clap.py, llama.py) serves all layouts, and no tensor is in memory
before it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that can be read: `dtype` is numpy's (bfloat16 that of ml_dtypes)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """One published model on disk.

    config: the hub's config.json, or one of the same keys made of what the layout has instead.
    tensors: by hub name, as in "model.layers.0.self_attn.q_proj.weight".
    files: all that the numbers come from, to be hashed.
    native: whether transformers reads the same from `path` by itself.
    notes: what the user is told of how it was read, a line each.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    native: bool = False
    notes: tuple[str, ...] = ()

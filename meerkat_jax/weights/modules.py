"""What training made outside the language model, under our own paths: a safetensors file.

    meerkat_modules.safetensors   "image_connector/outer/kernel" float[I, D] ...
    meerkat_config.json           the run's config, with which build.py builds the model

That is all that no base gives: connectors, places, AVOpT, AVACE, the rows of tokens that were added
to the language model's vocabulary, and every leaf of a tower that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.config import to_json
from meerkat_jax.weights.adapters import ADDED, MODULES_FILE, save
from meerkat_jax.weights.files import read_json, refuse, tensors_of

WEIGHTS, CONFIG = MODULES_FILE, "meerkat_config.json"
LLAMA = "llama/"


def write_modules(
    folder: Path, params: Mapping[str, Any], given: Collection[str], config: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Write both files into `folder`; returns the shape of each leaf written, by path.

    params: all of Meerkat, by path; given: paths of the leaves that a base gives; config:
    the run's, resolved.
    """
    kept = {
        path: np.asarray(leaf)
        for path, leaf in params.items()
        if path == LLAMA + ADDED or not (path.startswith(LLAMA) or path in given)
    }
    save(folder / WEIGHTS, kept)
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")
    return {path: leaf.shape for path, leaf in kept.items()}


def read_modules(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, {path: leaf}) as written; UserError when a file is missing or broken."""
    folder, wrong = Path(folder), []
    config = read_json(folder / CONFIG, wrong)
    tensors = tensors_of(folder / WEIGHTS, wrong)
    refuse(folder, wrong)
    return config, {path: tensor.read() for path, tensor in tensors.items()}

"""A path, and what model is expected there -> its tensors, by whichever reader fits what is found.

clip    a folder in the hub's layout
clap    a folder in the hub's layout, or LAION's own .pt file (or a folder with just that)
llama   a folder in the hub's or in Meta's own layout, or a .gguf file (or a folder with just it)
any     a folder of a model that the authors' code trained, of which the part is taken
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.files import AGAIN, TORCH
from meerkat_jax.weights.gguf import read_gguf
from meerkat_jax.weights.hub import CONFIG, read_hub, weights_of
from meerkat_jax.weights.laion import read_laion
from meerkat_jax.weights.meta import PARAMS, read_meta
from meerkat_jax.weights.read_release import is_release, read_release
from meerkat_jax.weights.source import Source

MODEL_TYPES = {
    "clip": ("clip", "clip_vision_model"),
    "clap": ("clap", "clap_audio_model"),
    "llama": ("llama",),
}
HUB = f"a folder with {CONFIG} and model.safetensors or pytorch_model.bin (or shards of them)"
EXPECTED = {
    "clip": HUB,
    "clap": f"{HUB}, or LAION's .pt file",
    "llama": f"{HUB}, one with {PARAMS} and consolidated.*.pth, or a .gguf file",
}
SHOWN = 8  # files that an error lists
Reader = Callable[[list[str]], Source]


def open_source(path: str | os.PathLike, kind: str) -> Source:
    """Look at a checkpoint without reading its numbers; `kind` is "clip", "clap" or "llama".

    Raises UserError with all that is wrong: nothing of the kind at `path`, another model_type,
    downloads that have not ended, files that are missing, empty or cut short, an index that its
    shards disagree with.
    """
    path = Path(path)
    return _reader(path, kind)(_unfinished(path))


def _reader(path: Path, kind: str) -> Reader:
    if path.is_dir():
        if is_release(path):
            return lambda wrong: read_release(path, wrong)[kind]
        hub = functools.partial(read_hub, path, MODEL_TYPES[kind])
        if (path / CONFIG).exists() and weights_of(path) is not None:
            return hub
        if kind == "llama" and (path / PARAMS).exists():
            return functools.partial(read_meta, path)
        if (single := _single(path, kind)) is not None:
            return _reader(single, kind)
        if (path / CONFIG).exists():
            return hub  # which says what is missing
    elif path.is_file():
        if kind == "llama" and path.suffix == ".gguf":
            return functools.partial(read_gguf, path)
        if kind == "clap" and path.suffix in TORCH:
            return functools.partial(read_laion, path)
    raise UserError(f"{path} is no checkpoint of {kind}: {_found(path)}; expected {EXPECTED[kind]}")


def _single(folder: Path, kind: str) -> Path | None:
    """The one file of a folder that is a checkpoint by itself, if there is one and only one."""
    endings = {"llama": (".gguf",), "clap": (".pt", ".pth")}.get(kind, ())
    files = [file for file in sorted(folder.iterdir()) if file.suffix in endings]
    return files[0] if len(files) == 1 else None


def _found(path: Path) -> str:
    if not path.exists():
        return "there is nothing"
    if path.is_file():
        return f"it is a file {path.name}"
    if (path / "snapshots").is_dir():
        return "it is the cache of a repository, whose files lie in one of its snapshots/*"
    names = sorted(file.name + "/" * file.is_dir() for file in path.iterdir())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"found {', '.join(names[:SHOWN])}{more}" if names else "it is empty"


def _unfinished(path: Path) -> list[str]:
    """Downloads in a folder that have not ended, as the hub's client leaves them."""
    if not path.is_dir():
        return []
    inner = path / ".cache" / "huggingface" / "download"
    files = sorted([*path.glob("*.incomplete"), *inner.rglob("*.incomplete")])
    return [
        f"{file.relative_to(path)} is a download that has not ended; {AGAIN}, or remove this file "
        "if it is of no use"
        for file in files
    ]

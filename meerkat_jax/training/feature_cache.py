"""A cache of tower tokens for phases whose towers are frozen.

Frozen towers would encode each example anew in every epoch, for a third of the step's time. A phase
with `cache_features: N` reads the first N examples of its split instead: their tower tokens are
computed when the phase begins, written to the work directory and looked up by example id; images
and audio are not decoded again. A resumed run reuses a complete cache. All processes compute the
tokens together, process 0 writes them, and all read them.

If no phase trains the published towers, a run in one process writes to the shared cache folder, by
the hash of the store and everything else that the tokens depend on, so that later runs reuse them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import alone, write_text
from meerkat_jax.core.progress import Progress
from meerkat_jax.core.trees import flatten, selected
from meerkat_jax.data.pipeline import encode_media
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.parallel import hosts

NAMES = ("image_tokens", "audio_tokens")
TOWERS = ("image_tower/", "audio_tower/")
VERSION = 1  # of the cache; raise it when the same towers give other numbers
ROWS = "rows.json"  # example ids in the order of the arrays; written last
# NumPy reads an array's header by `ast`, which fails in CPython 3.11 when two threads are in it.
_OPENING = threading.Lock()


class FeatureCache:
    """image_tokens float32[N, V, I] and audio_tokens float32[N, A, J] of N examples, on disk.

    Worker processes open the files for themselves.
    """

    def __init__(self, folder: Path, rows: Mapping[str, int]):
        """`rows` is the row of each example id in the arrays of `folder`."""
        self.folder, self.rows, self._arrays = folder, rows, {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_arrays": {}}

    def lookup(self, example_id: str) -> dict[str, np.ndarray]:
        """image_tokens float32[V, I] and audio_tokens float32[A, J] of one example."""
        with _OPENING:
            if not self._arrays:
                self._arrays = {n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in NAMES}
        return {
            name: np.array(array[self.rows[example_id]]) for name, array in self._arrays.items()
        }


def check_phase(phase: Mapping, trainable: Mapping) -> None:
    """UserError when `phase` caches features while it trains a tower, or caches none."""
    count = phase.get("cache_features")
    if count is None:
        return
    where = f"config.phases, {phase['name']!r}: cache_features {count!r}"
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{where}: expected a whole number of examples above 0")
    flat = flatten(trainable)
    frozen = selected(phase.get("freeze", ()), flat)
    moving = [path for path in flat if path.startswith(TOWERS) and path not in frozen]
    if moving:
        raise UserError(
            f"{where}, but {len(moving)} leaves of the towers are trained, {moving[0]} first; "
            "name them in `freeze` or leave `cache_features` out"
        )


def cache_folder(workdir: Path, cache: Path, facts: Mapping[str, Any], trainable: Mapping) -> Path:
    """`workdir`, or a folder in the `cache` if they depend on `facts`, JSON values, alone.

    They do if no phase trains the towers and they come from `facts["base"]`, a store.
    """
    trained = any(path.startswith(TOWERS) for path in flatten(trainable))
    if trained or not facts.get("base") or jax.process_count() > 1:
        return workdir
    text = json.dumps(facts | {"version": VERSION}, sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_features(
    folder: Path,
    records: grain.MapDataset,
    shapes: Shapes,
    encode: Callable[[dict], tuple[jax.Array, jax.Array]],
    batch: int,
) -> FeatureCache:
    """Run `encode` over all Examples of `records`, in batches of `batch`, and write the tokens.

    encode: {image uint8[B, H, W, 3], audio float32[B, samples]} -> image and audio tokens. A
    complete cache in `folder` is reused; other runs that want to fill it wait. Raises UserError
    when the disk is too full.
    """
    # Several processes share a work directory that no other run fills.
    with alone(folder) if jax.process_count() == 1 else contextlib.nullcontext():
        if (folder / ROWS).exists():
            ids = json.loads((folder / ROWS).read_text())
            return FeatureCache(folder, {name: i for i, name in enumerate(ids)})
        return _fill(folder, records, shapes, encode, batch)


def _fill(folder, records, shapes, encode, batch) -> FeatureCache:
    """Compute and write the features; what a killed run left is overwritten."""
    rows, arrays = {}, ()
    progress = Progress("caching features: examples", len(records))

    def media(example) -> dict:
        return encode_media(example, shapes) | {"id": example.id}

    reading = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
    for piece in records.map(media).to_iter_dataset(reading).batch(batch):
        ids = piece.pop("id").tolist()
        piece = {key: _filled(value, batch) for key, value in piece.items()}
        found = [np.asarray(tokens)[: len(ids)] for tokens in encode(piece)]
        if not arrays and hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            paths = (folder / f"{name}.npy" for name in NAMES)
            arrays = [_created(*like, len(records)) for like in zip(paths, found, strict=True)]
        for array, tokens in zip(arrays, found, strict=hosts.is_first()):  # others write none
            array[len(rows) : len(rows) + len(ids)] = tokens
        rows |= {name: len(rows) + i for i, name in enumerate(ids)}
        progress.report(len(rows))
    for array in arrays:
        array.flush()
    if hosts.is_first():
        write_text(folder / ROWS, json.dumps(list(rows)))
    return FeatureCache(folder, rows)


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """The last batch padded to the size of the others, so that it needs no program of its own."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _created(path: Path, like: np.ndarray, count: int) -> np.memmap:
    needed, free = count * like[0].nbytes, shutil.disk_usage(path.parent).free
    if needed > free:  # writing on would end the process without a word
        raise UserError(
            f"{path}: {count} examples need {needed >> 20} MiB, {free >> 20} MiB are free there; "
            "lower `cache_features` or use another --workdir"
        )
    shape = (count, *like.shape[1:])
    return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=shape)

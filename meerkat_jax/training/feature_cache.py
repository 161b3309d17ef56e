"""What the towers make of scenes, made once and kept, for phases whose towers are at rest.

A phase that trains behind resting towers would see and hear each scene anew in every pass over it,
for a third of its time. A phase with `kept: N` instead reads the first N scenes of its split: their
tower tokens are computed when the phase begins, written to the work directory and looked up by
scene; pictures and sounds are not decoded again. A resumed run finds those that were whole. All
processes compute them together, process 0 writes them, and all look them up.

Of published towers that no phase trains, a run in one process keeps them in the cache instead, by
the hash of the store and whatever else they depend on: later runs find them made.
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
VERSION = 1  # of what is kept; raise it when the same towers give other numbers
ROWS = "rows.json"  # scenes in the order of the arrays; written last, when those are whole
# NumPy reads an array's header by `ast`, which fails in CPython 3.11 when two threads are in it.
_OPENING = threading.Lock()


class Senses:
    """image_tokens float32[N, V, I] and audio_tokens float32[N, A, J] of N scenes, on disk.

    Worker processes open the files for themselves.
    """

    def __init__(self, folder: Path, rows: Mapping[str, int]):
        """`rows` tells by a scene's id its place in the arrays of `folder`."""
        self.folder, self.rows, self._arrays = folder, rows, {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_arrays": {}}

    def of(self, scene: str) -> dict[str, np.ndarray]:
        """image_tokens float32[V, I] and audio_tokens float32[A, J] of one scene."""
        with _OPENING:
            if not self._arrays:
                self._arrays = {n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in NAMES}
        return {name: np.array(array[self.rows[scene]]) for name, array in self._arrays.items()}


def check_kept(phase: Mapping, trainable: Mapping) -> None:
    """UserError when `phase` keeps tower tokens while it trains a tower, or keeps none."""
    kept = phase.get("kept")
    if kept is None:
        return
    where = f"config.phases, {phase['name']!r}: kept {kept!r}"
    if not isinstance(kept, int) or isinstance(kept, bool) or kept < 1:
        raise UserError(f"{where}: expected a whole number of scenes above 0")
    flat = flatten(trainable)
    rest = selected(phase.get("still", ()), flat)
    moving = [path for path in flat if path.startswith(TOWERS) and path not in rest]
    if moving:
        raise UserError(
            f"{where}, but {len(moving)} leaves of the towers are trained, {moving[0]} first; "
            "name them in `still` or leave `kept` out"
        )


def folder_of(workdir: Path, cache: Path, facts: Mapping[str, Any], trainable: Mapping) -> Path:
    """`workdir`, or a folder in the `cache` if they depend on `facts`, JSON values, alone.

    They do if the towers are at rest in all of the run and come from `facts["base"]`, a store.
    """
    trained = any(path.startswith(TOWERS) for path in flatten(trainable))
    if trained or not facts.get("base") or jax.process_count() > 1:
        return workdir
    text = json.dumps(facts | {"version": VERSION}, sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:12]


def keep(
    folder: Path,
    records: grain.MapDataset,
    shapes: Shapes,
    sense: Callable[[dict], tuple[jax.Array, jax.Array]],
    batch: int,
) -> Senses:
    """Run `sense` over all Examples of `records`, in batches of `batch`, and write what it gives.

    sense: {image uint8[B, H, W, 3], audio float32[B, samples]} -> image and audio tokens. What is
    whole in `folder` is not made again; other runs that want to fill it wait. Raises UserError when
    the disk has no room for them.
    """
    # Several processes share a work directory that no other run fills.
    with alone(folder) if jax.process_count() == 1 else contextlib.nullcontext():
        if (folder / ROWS).exists():
            scenes = json.loads((folder / ROWS).read_text())
            return Senses(folder, {scene: i for i, scene in enumerate(scenes)})
        return _fill(folder, records, shapes, sense, batch)


def _fill(folder, records, shapes, sense, batch) -> Senses:
    """`keep` where there is nothing yet, or what a killed run left."""
    rows, arrays = {}, ()
    progress = Progress("what the towers see and hear: scenes", len(records))

    def media(example) -> dict:
        return encode_media(example, shapes) | {"id": example.id}

    reading = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
    for piece in records.map(media).to_iter_dataset(reading).batch(batch):
        ids = piece.pop("id").tolist()
        piece = {key: _filled(value, batch) for key, value in piece.items()}
        found = [np.asarray(tokens)[: len(ids)] for tokens in sense(piece)]
        if not arrays and hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            paths = (folder / f"{name}.npy" for name in NAMES)
            arrays = [_created(*like, len(records)) for like in zip(paths, found, strict=True)]
        for array, tokens in zip(arrays, found, strict=hosts.is_first()):  # others write none
            array[len(rows) : len(rows) + len(ids)] = tokens
        rows |= {scene: len(rows) + i for i, scene in enumerate(ids)}
        progress.report(len(rows))
    for array in arrays:
        array.flush()
    if hosts.is_first():
        write_text(folder / ROWS, json.dumps(list(rows)))
    return Senses(folder, rows)


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """The last batch as large as the others, so that nothing is compiled for it."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _created(path: Path, like: np.ndarray, count: int) -> np.memmap:
    needed, free = count * like[0].nbytes, shutil.disk_usage(path.parent).free
    if needed > free:  # writing on would end the process without a word
        raise UserError(
            f"{path}: {count} scenes need {needed >> 20} MiB, {free >> 20} MiB are free there; "
            "lower `kept` or use another --workdir"
        )
    shape = (count, *like.shape[1:])
    return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=shape)

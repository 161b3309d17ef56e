"""Our store of converted weights: one folder, written tensor by tensor, read shard by shard.

    store.json            what is in it: parts, their configs, leaves, sources and their hashes
    llama.safetensors     the leaves of a part, by their path in our tree; stacked over layers
    image_tower.safetensors, audio_tower.safetensors
    tokenizer.json ...    if the language model brought one

A leaf lies in its file as one block, so a stacked leaf is filled slice by slice as the source's
tensors come, and a device reads just the part that its sharding gives it. The folder appears under
its name only when it is whole: everything is written to a folder beside it and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from meerkat_jax.core.errors import UserError

FORMAT = "meerkat_jax store 1"
FILE = "store.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MARGIN = 64 << 20  # bytes that a disk must have beyond what a store takes


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf: where its numbers lie in which file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def header(
    leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    metadata: Mapping[str, str] | None = None,
) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file, and the offset in the file of each leaf.

    Source: the format's description, github huggingface/safetensors, README.
    """
    entries, at = {}, 0
    for path, (shape, dtype) in leaves.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[path] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    told = {"__metadata__": dict(metadata)} if metadata else {}
    text = json.dumps(told | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {path: start + entry["data_offsets"][0] for path, entry in entries.items()}
    return len(text).to_bytes(8, "little") + text, offsets


class Writer:
    """Writes the leaves of a part; `put` takes them whole or slice by slice, in any order."""

    def __init__(
        self,
        file: Path,
        leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        metadata: Mapping[str, str] | None = None,
    ):
        """Make the file at its full size; UserError when the disk has no room for it."""
        self.file = file
        head, offsets = header(leaves, metadata)
        self.leaves = {
            path: Leaf(tuple(shape), dtype, file.name, offsets[path])
            for path, (shape, dtype) in leaves.items()
        }
        size = len(head) + sum(leaf.nbytes for leaf in self.leaves.values())
        check_space(file.parent, size)
        self._open = file.open("xb")
        self._open.write(head)
        self._open.truncate(size)

    def put(self, path: str, value: np.ndarray, index: int | None = None) -> None:
        """Write a leaf, or slice `index` of its leading axis; the dtype becomes the leaf's."""
        leaf = self.leaves[path]
        shape = leaf.shape if index is None else leaf.shape[1:]
        if value.shape != shape:
            raise ValueError(f"{path}: got {value.shape}, expected {shape}")
        data = _cast(path, value, leaf.dtype)
        self._open.seek(leaf.offset + (index or 0) * data.nbytes)
        try:
            self._open.write(data.tobytes() if data.ndim == 0 else memoryview(data.view(np.uint8)))
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Flush to disk."""
        self._open.flush()
        os.fsync(self._open.fileno())
        self._open.close()


def _cast(path: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`value` in another dtype; UserError if a number is too large for it."""
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(value, dtype)
    if dtype.itemsize < value.dtype.itemsize and not np.isfinite(data.astype(np.float32)).all():
        if np.isfinite(value.astype(np.float32)).all():
            raise UserError(
                f"{path}: {np.abs(value.astype(np.float32)).max():g} is beyond the range of "
                f"{dtype}; use --dtype=bfloat16 or float32"
            )
    return data


def check_space(folder: Path, size: int) -> None:
    """UserError unless `folder`'s disk has `size` bytes and a margin free."""
    free = shutil.disk_usage(folder).free
    if free < size + MARGIN:
        raise UserError(
            f"{folder}: {size / 2**30:.2f} GiB are to be written, {free / 2**30:.2f} GiB are free; "
            "make room or name another --out"
        )


def sha256(file: Path, seen: Callable[[int], None] = lambda count: None) -> str:
    """Hash of a file, read in pieces; `seen` is told how many bytes each has."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(16 << 20):
            digest.update(piece)
            seen(len(piece))
    return digest.hexdigest()


class Store:
    """A converted store on disk, opened for reading."""

    def __init__(self, folder: Path, record: Mapping[str, Any]):
        """Use `open`."""
        self.folder, self.record = folder, record
        self.leaves = {
            path: Leaf(tuple(e["shape"]), DTYPES[e["dtype"]], e["file"], e["offset"])
            for path, e in record["leaves"].items()
        }

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Store:
        """Read `folder`/store.json and look at the files' sizes; their bytes are not read.

        Raises UserError when the folder is not a whole store of ours.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / FILE).read_text())
            if record["format"] != FORMAT:
                raise UserError(
                    f"{folder / FILE}: format {record['format']!r}, expected {FORMAT!r}; "
                    "convert the weights anew"
                )
            store = cls(folder, record)
        except FileNotFoundError:
            raise UserError(
                f"{folder} is no store of converted weights: no {FILE} in it; "
                "make one with tools/convert_weights.py"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder / FILE} cannot be read: {error!r}; convert anew") from None
        for name, about in record["files"].items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != about["size"]:
                raise UserError(
                    f"{folder / name}: {'missing' if size is None else f'{size} bytes'}, expected "
                    f"{about['size']} bytes; convert the weights anew"
                )
        return store

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """By name ("llama", "image_tower", "audio_tower"): kind, config, dtype, source."""
        return self.record["parts"]

    @property
    def hash(self) -> str:
        """One hash of all numbers and configs; not of when, where and from what file they came."""
        files = {name: about["sha256"] for name, about in self.record["files"].items()}
        configs = {name: part["config"] for name, part in self.parts.items()}
        told = json.dumps([files, configs], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def read(self, path: str) -> np.ndarray:
        """A leaf as a view of the file: what is not touched is not read."""
        leaf = self.leaves[path]
        if math.prod(leaf.shape) == 0:
            return np.zeros(leaf.shape, leaf.dtype)
        return np.memmap(self.folder / leaf.file, leaf.dtype, "r", leaf.offset, leaf.shape)

    def place(self, path: str, sharding: jax.sharding.Sharding, dtype: Any = None) -> jax.Array:
        """A leaf on its devices, each reading its own part; `dtype` None keeps the store's."""
        view = self.read(path)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return np.array(view[index], dtype or view.dtype)

        return jax.make_array_from_callback(view.shape, sharding, part)

    def check(self, seen: Callable[[int], None] = lambda count: None) -> None:
        """Read all bytes; UserError for a file that is not what was written."""
        for name, about in self.record["files"].items():
            found = sha256(self.folder / name, seen)
            if found != about["sha256"]:
                raise UserError(
                    f"{self.folder / name} is not what was written (sha256 {found[:12]}..., "
                    f"expected {about['sha256'][:12]}...); convert the weights anew"
                )


def write_record(folder: Path, writers: list[Writer], parts: Mapping, others: list[str]) -> None:
    """Close the writers, hash what was written and write store.json, which makes it a store.

    others: further files in `folder`, of the tokenizer.
    """
    for writer in writers:
        writer.close()
    names = [writer.file.name for writer in writers] + others
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
    }
    leaves = {
        path: {
            "shape": list(leaf.shape),
            "dtype": NAMES[leaf.dtype],
            "file": leaf.file,
            "offset": leaf.offset,
        }
        for writer in writers
        for path, leaf in writer.leaves.items()
    }
    record = {"format": FORMAT, "parts": parts, "files": files, "leaves": leaves}
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write a store in, which becomes `out` when all went well.

    What an interrupted conversion left there is cleared, before and after. Raises UserError if
    something has the name `out` already, or the folder cannot be made.
    """
    if os.path.lexists(out):
        raise UserError(f"--out={out} exists already; name a new folder, or remove it first")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror or error}") from error
    try:
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

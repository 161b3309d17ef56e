"""What must not be in two splits: images, clips and source videos, over all data sets together.

Every example has keys ("video:--4gqARaEJE"); a built folder keeps those of each split, hashed to 64
bits, in `keys/<split>.npy`. A name is needed only when something is wrong; it is looked up in the
reports of the shards then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from meerkat_jax.core.errors import UserError


def hashed(key: str | bytes) -> int:
    """64 bits of a hash, as a number."""
    content = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def file_hash(path: Path) -> str:
    """Of a file's bytes; UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def write_keys(folder: Path, split: str, keys: Iterable[str]) -> None:
    """Keep the keys of a split."""
    (folder / "keys").mkdir(exist_ok=True)
    np.save(folder / "keys" / f"{split}.npy", np.unique(np.fromiter(map(hashed, keys), np.uint64)))


def read_keys(folder: Path, split: str) -> np.ndarray:
    """uint64[k] of a built folder, sorted; none when it has no such split."""
    path = Path(folder) / "keys" / f"{split}.npy"
    if not (Path(folder) / "manifest.json").is_file():
        raise UserError(f"{folder}: no manifest.json; not a built data set, or not yet finished")
    return np.load(path) if path.is_file() else np.zeros(0, np.uint64)


def leaking(
    owners: np.ndarray,
    keys: np.ndarray,
    test: np.ndarray,
    there: np.ndarray,
    exclude: Sequence[Path],
) -> dict[str, np.ndarray]:
    """Examples of training that share a key with a test split, by what they share it with.

    owners int[k], the example of each of `keys` uint64[k]; test bool[n] and there bool[n], which
    examples are of the test split, and can be made; exclude, folders that are built.
    """
    held = test[owners]
    used = there[owners]
    sides = {"also in the test split": keys[held & used]}
    sides |= {f"also in the test split of {path.name}": read_keys(path, "test") for path in exclude}
    found, left = {}, ~held & used
    for why, others in sides.items():
        rows = np.unique(owners[left & np.isin(keys, others)])
        if len(rows):
            found[why] = rows
            left &= ~np.isin(owners, rows)
    return found


def refuse(folders: Sequence[Path], held: Sequence[Path] = ()) -> None:
    """UserError, naming the key, when a training split shares something with any test split.

    The test splits are those of all `folders`, and of others, `held`, whose training splits are
    not used.
    """
    tests = [(folder, read_keys(folder, "test")) for folder in (*folders, *held)]
    for folder in folders:
        train = read_keys(folder, "train")
        for other, keys in tests:
            both = np.intersect1d(train, keys, assume_unique=True)
            if len(both):
                raise UserError(
                    f"{len(both)} images or videos are in the training split of {folder} and in "
                    f"the test split of {other}, {_name(folder, int(both[0]))} for one; build "
                    f"{folder.name} anew (--overwrite) with --exclude={other} beside its others"
                )


def _name(folder: Path, number: int) -> str:
    for path in sorted((folder / "shards").glob("*.json")):
        for key in json.loads(path.read_text())["keys"].get("train", ()):
            if hashed(key) == number:
                return key
    return "one"

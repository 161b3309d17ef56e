"""Files: written whole or not at all, folders that one run at a time fills, the cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, for which other runs wait and say so.

    The system frees it when this process ends, however it ends.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run that fills {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def default_cache() -> Path:
    """The cache folder: $MEERKAT_CACHE, else ~/.cache/meerkat_jax."""
    named = os.environ.get("MEERKAT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "meerkat_jax"

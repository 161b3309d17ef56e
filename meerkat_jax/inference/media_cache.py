"""Decoded images and audio of the files that were asked about lately, so that each is decoded once.

A file of 36 million pixels takes seconds to decode, and each question of a conversation brings it
again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

T = TypeVar("T")
MAX_BYTES = 64 << 20  # of what is decoded; about 30 pairs of 224 pixels and 10 s at 48 kHz


class MediaCache:
    """What was made of files, by kind and hash of their bytes; the least recently used go first."""

    def __init__(self, most: int = MAX_BYTES):
        """At most `most` bytes are kept."""
        self._most, self._lock = most, threading.Lock()
        self._entries: collections.OrderedDict[tuple[str, bytes], concurrent.futures.Future] = (
            collections.OrderedDict()
        )

    def get(self, kind: str, data: bytes, decode: Callable[[bytes], T]) -> T:
        """`decode(data)`, done once for threads that ask at a time, too; do not change its arrays.

        What `decode` raises is raised to all of them, and not kept.
        """
        key = kind, hashlib.blake2b(data).digest()
        with self._lock:
            entry = self._entries.get(key)
            if ours := entry is None:
                entry = self._entries[key] = concurrent.futures.Future()
            self._entries.move_to_end(key)
        if ours:
            try:
                entry.set_result(decode(data))
            except BaseException as error:
                with self._lock:
                    del self._entries[key]
                entry.set_exception(error)
            else:
                self._shrink()
        return entry.result()

    def _shrink(self) -> None:
        """Forget the oldest of those that are decoded."""
        with self._lock:
            done = {key: _bytes(one.result()) for key, one in self._entries.items() if one.done()}
            size = sum(done.values())
            for key, count in done.items():
                if size <= self._most:
                    break
                del self._entries[key]
                size -= count


def _bytes(value: object) -> int:
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    if isinstance(value, bytes):
        return len(value)
    return value.nbytes if isinstance(value, np.ndarray) else 0

"""Memory of batches, used again when nobody holds the batch any more.

A batch of sounds is many megabytes. Fresh memory for each costs the system a page fault every
4 KiB, with worker processes in both processes and once more when it goes: on a virtual machine that
is a third of the time of decoding. So a batch lies in a slot, and the slot is free again when the
last array of the batch is gone, whoever held it, in whatever order.

Between processes a slot is a nameless file in memory, of which a worker tells the number; it goes
with its worker, however that ends, and is not bound by the size of /dev/shm. Its first byte says
whether it is in use: a worker sets it, the process that reads the batch clears it.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import threading
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

LINE = 64  # bytes: where arrays begin, so that jax need not copy them on a CPU
Forms = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # shapes and types of a batch, by name


@dataclasses.dataclass(frozen=True)
class Handed:
    """Where the arrays of a batch lie in a worker: process, file, bytes, and each array's place."""

    process: int
    file: int
    size: int
    places: tuple[tuple[str, int, tuple[int, ...], str], ...]


def laid_out(forms: Forms) -> tuple[tuple[tuple[str, int, tuple[int, ...], str], ...], int]:
    """(name, offset, shape, type) of each array, and the bytes of all, the first line left free."""
    places, end = [], LINE
    for name, (shape, kind) in forms.items():
        places.append((name, end, tuple(shape), np.dtype(kind).str))
        size = math.prod(shape) * np.dtype(kind).itemsize
        end += -(-size // LINE) * LINE
    return tuple(places), end


def arrays(memory: np.ndarray, places: Sequence) -> dict[str, np.ndarray]:
    """The arrays at these places of uint8[n]; it lives as long as any of them."""
    return {name: np.ndarray(shape, kind, memory, at) for name, at, shape, kind in places}


class Slots:
    """Memory of one process, for its threads; with `shared` the process that started it reads."""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared and hasattr(os, "memfd_create")  # of Linux
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []
        self._files: list[tuple[int, mmap.mmap]] = []

    def __getstate__(self) -> dict:
        """Without memory: each process has its own."""
        return {"shared": self.shared}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._begin()

    def take(self, forms: Forms) -> tuple[dict[str, np.ndarray], Handed | dict]:
        """Arrays to be filled (whatever was in them is still there), and what is then given on.

        That is the arrays again, or with `shared` a note for `Readers`.
        """
        places, size = laid_out(forms)
        if self.shared:
            file, memory = self._file(size)
            made = arrays(np.frombuffer(memory, np.uint8), places)
            return made, Handed(os.getpid(), file, len(memory), places)
        with self._lock:
            fits = (i for i, memory in enumerate(self._free) if len(memory) >= size)
            found = next(fits, None)
            memory = mmap.mmap(-1, size) if found is None else self._free.pop(found)
        held = np.frombuffer(memory, np.uint8)
        # No lock here: this may be called wherever Python frees memory. An append is whole.
        weakref.finalize(held, self._free.append, memory).atexit = False
        made = arrays(held, places)
        return made, made

    def _file(self, size: int) -> tuple[int, mmap.mmap]:
        """A file in memory that is not in use, and from now on is."""
        with self._lock:
            for file, memory in self._files:
                if not memory[0] and len(memory) >= size:
                    memory[0] = 1
                    return file, memory
            file = os.memfd_create("batch")
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
            memory[0] = 1
            self._files.append((file, memory))
            return file, memory


class Readers:
    """Batches of workers by their notes; anything else is given as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], mmap.mmap] = {}

    def __call__(self, note: Handed | dict) -> dict[str, np.ndarray]:
        """The arrays, which keep the slot in use until the last of them is gone."""
        if not isinstance(note, Handed):
            return note
        key = note.process, note.file
        if key not in self._known:
            with open(f"/proc/{note.process}/fd/{note.file}", "r+b") as file:
                self._known[key] = mmap.mmap(file.fileno(), note.size)
        memory = self._known[key]
        held = np.frombuffer(memory, np.uint8)
        weakref.finalize(held, memory.__setitem__, 0, 0).atexit = False
        return arrays(held, note.places)

"""The GGUF file format: what its head says, read in a second at any vocabulary.

The `gguf` package has a reader too, which maps every string of the vocabulary by itself and takes
half a minute for the tokens of Llama 3; of the package only the quantisations are used (gguf.py).

    "GGUF", version, count of tensors, count of values
    values: key, type, value            the metadata, tokenizer included
    tensors: name, shape, type, offset  shape innermost first; offset from the data's start
    data, from the next multiple of general.alignment

Source: github ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

VERSIONS = (2, 3)
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor in the file: numpy's shape, GGML's number of its type, place of its first byte."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Head:
    """The head of a file: `values` by key, `tensors` by name."""

    values: dict[str, Any]
    tensors: dict[str, Entry]


def read_head(file: Path) -> Head:
    """Raises ValueError when the file is no GGUF file, or ends within its head."""
    with file.open("rb") as stream:
        head = _Stream(stream, file.stat().st_size)
        if (magic := head.take(4)) != b"GGUF":
            raise ValueError(f"it begins with {magic!r}, expected b'GGUF'")
        if (version := head.number("I")) not in VERSIONS:
            raise ValueError(f"GGUF version is {version}, expected {VERSIONS} and little-endian")
        tensors, values = head.number("Q"), head.number("Q")
        found = {head.text(): head.value() for _ in range(values)}
        entries = [
            (head.text(), head.numbers("Q", head.number("I")), head.number("I"), head.number("Q"))
            for _ in range(tensors)
        ]
        align = found.get("general.alignment", 32)
        start = -(-stream.tell() // align) * align
    shapes = {name: Entry(shape[::-1], kind, start + at) for name, shape, kind, at in entries}
    return Head(found, shapes)


class _Stream:
    """Values one after another, from a stream of which `size` bytes exist."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size = stream, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.stream.tell():
            raise ValueError(f"it ends within its head, at {self.size} bytes")
        return self.stream.read(count)

    def number(self, code: str) -> int:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[int, ...]:
        form = f"<{count}{code}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int | None = None) -> Any:
        kind = self.number("I") if kind is None else kind
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            return self.array(kind, count) if kind in SCALARS else self.texts(kind, count)
        return self.array(kind, 1)[0]

    def array(self, kind: int, count: int) -> list[Any]:
        if kind not in SCALARS:
            raise ValueError(f"a value has type {kind}, which GGUF does not know")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def texts(self, kind: int, count: int) -> list[Any]:
        return [self.value(kind) for _ in range(count)]

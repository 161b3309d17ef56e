"""Reader of Qt's binary resource files (.rcc), format versions 1 to 3.

The file is a header, a tree of fixed-size nodes, a table of UTF-16 names and the payloads, all big
endian (Qt's own writer is `rcc --binary`; the layout is that of `qresource.cpp`). Every offset is
checked against the file before it is followed, so a damaged file ends in one UserError.

Payloads are plain or zlib. Those packed with zstd, which Python's standard library lacks before
3.14, are listed as the others are, and refused with a clear message when read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from meerkat_jax.core.errors import UserError

_COMPRESSED, _DIRECTORY, _ZSTD = 0x01, 0x02, 0x04
_LARGEST = 256 * 1024 * 1024  # bytes of one unpacked payload; media are far smaller


class Resources(Mapping[str, bytes]):
    """Payloads by path ("folder/file.png"); the tree is read at once, each payload when asked for.

    Raises UserError when the file is no resource file or is damaged.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self._data, self._source = data, source
        magic, self._version, *offsets = self._unpack(">4s4I", 0)
        if magic != b"qres" or not 1 <= self._version <= 3:
            raise self._damaged(f"starts with {magic!r}, version {self._version}")
        self._tree, self._payloads, self._names = offsets
        self._node_size = 14 if self._version == 1 else 22
        self._entries = dict(self._walk())

    def __getitem__(self, path: str) -> bytes:
        flags, offset = self._entries[path]
        at = self._payloads + offset
        (size,) = self._unpack(">I", at)
        packed = self._slice(at + 4, size)
        if flags & _ZSTD:
            raise UserError(
                f"{self._source}: {path} is packed with zstd; only plain and zlib are read"
            )
        return self._inflate(path, packed) if flags & _COMPRESSED else packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield (path, (flags, payload offset)) of every file, folders left out."""
        pending = [(0, "")]
        seen: set[int] = set()
        while pending:
            index, folder = pending.pop()
            if index in seen:
                raise self._damaged(f"node {index} occurs twice in the tree")
            seen.add(index)
            at = self._tree + index * self._node_size
            name_at, flags, first, second = self._unpack(">IHII", at)
            path = folder + self._name(name_at) if index else ""
            if not flags & _DIRECTORY:
                yield path, (flags, second)
                continue
            count, child = first, second
            self._slice(self._tree + child * self._node_size, count * self._node_size)
            prefix = path + "/" if path else ""
            pending.extend((child + k, prefix) for k in range(count))

    def _name(self, offset: int) -> str:
        at = self._names + offset
        (units,) = self._unpack(">H", at)  # followed by a hash of four bytes that we do not need
        try:
            return self._slice(at + 6, 2 * units).decode("utf-16-be")
        except UnicodeDecodeError as error:
            raise self._damaged(f"a name is not UTF-16 ({error})") from error

    def _inflate(self, path: str, packed: bytes) -> bytes:
        if len(packed) < 4:
            raise self._damaged(f"{path} is packed in {len(packed)} bytes")
        (size,) = struct.unpack_from(">I", packed)
        if size > _LARGEST:
            raise self._damaged(f"{path} claims {size} unpacked bytes, at most {_LARGEST} are read")
        try:
            inflater = zlib.decompressobj()
            plain = inflater.decompress(packed[4:], size + 1)  # never more than it claims
        except zlib.error as error:
            raise self._damaged(f"{path} does not unpack ({error})") from error
        if len(plain) != size:
            raise self._damaged(f"{path} unpacks to {len(plain)} bytes instead of {size}")
        return plain

    def _unpack(self, form: str, at: int) -> tuple:
        return struct.unpack(form, self._slice(at, struct.calcsize(form)))

    def _slice(self, at: int, size: int) -> bytes:
        if at + size > len(self._data):
            raise self._damaged(f"ends at {len(self._data)} bytes, {at + size} are needed")
        return self._data[at : at + size]

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self._source}: not a whole Qt resource file: {what}; delete it and fetch it again"
        )


def read_rcc(path: str | os.PathLike[str]) -> Resources:
    """Open a .rcc file as a mapping from resource path to bytes; UserError when that fails."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    return Resources(data, str(path))

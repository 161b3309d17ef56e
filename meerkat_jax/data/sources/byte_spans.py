"""Rows that stay in their files: a plan of millions of examples holds where they are, not what.

The annotations of a plan are read once, row by row, to tell good from bad; what is kept of a good
row is where it lies, eighteen bytes, and it is read again when it is asked for.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meerkat_jax.core.errors import UserError

_WHITE = re.compile(r"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"


class ByteSpans:
    """Stretches of bytes in `paths`, by number."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.files, self.starts, self.ends = array("H"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, file: int, start: int, end: int) -> None:
        """Note one of `paths[file]`."""
        self.files.append(file)
        self.starts.append(start)
        self.ends.append(end)

    def read(self, index: int) -> Any:
        """The JSON value of a stretch, of an item of an object as {key: value}.

        UserError when the file is not what it was.
        """
        path, start = self.paths[self.files[index]], self.starts[index]
        try:
            with open(path, "rb") as file:
                file.seek(start)
                raw = file.read(self.ends[index] - start).removeprefix(_BOM)
            return json.loads(b"{%b}" % raw if raw.startswith(b'"') else raw)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError):
            raise changed(path) from None


def changed(path: Path) -> UserError:
    """What to raise when a row that was good no longer is."""
    return UserError(f"{path}: changed since it was planned; build the data set again")


class Item(NamedTuple):
    """An item of a JSON array or object: its line, key (or ""), value, and where it lies."""

    line: int
    key: str
    value: Any
    start: int
    end: int


def json_spans(path: Path, within: str = "") -> Iterator[Item]:
    """The items of the JSON array or object that a file is, or of its value at key `within`.

    UserError naming the line where it is no JSON, and for another kind of value.
    """
    try:
        raw = path.read_bytes()
        skipped = len(_BOM) if raw.startswith(_BOM) else 0
        text = raw[skipped:].decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; get the file again") from None
    plain = text.isascii()
    start = _after_white(text, 0)
    if within:
        start = _value_of(path, text, start, within)
    line, counted, offset = 1, 0, skipped
    for at, end, key, value in _walk(path, text, start, not within):
        line += text.count("\n", counted, at)
        offset += at - counted if plain else len(text[counted:at].encode())
        counted = at
        size = end - at if plain else len(text[at:end].encode())
        yield Item(line, key, value, offset, offset + size)


def _walk(
    path: Path, text: str, start: int, outermost: bool
) -> Iterator[tuple[int, int, str, Any]]:
    """(where it begins and ends, key or "", value) of the items of the value at `start`.

    Behind the outermost value nothing may follow.
    """
    opening = text[start : start + 1]
    if opening not in ("[", "{"):
        found = text[start : start + 40]
        raise _fault(path, text, start, f"expected a JSON array or object, found {found!r}")
    closing = "]" if opening == "[" else "}"
    at, first = _after_white(text, start + 1), True
    while text[at : at + 1] != closing:
        begin = at if first else _after_mark(path, text, at, ",")
        key, at = _key(path, text, begin) if opening == "{" else ("", begin)
        value, end = _decoded(path, text, at)
        yield begin, end, key, value
        at, first = _after_white(text, end), False
    if outermost and _after_white(text, at + 1) < len(text):
        raise _fault(path, text, at + 1, f"text after the last {closing!r}")


def _key(path: Path, text: str, at: int) -> tuple[str, int]:
    """The key of an object's item that begins at `at`, and where its value begins."""
    if text[at : at + 1] != '"':
        raise _fault(path, text, at, f"expected a key in quotes, found {text[at : at + 40]!r}")
    key, end = _decoded(path, text, at)
    return key, _after_mark(path, text, _after_white(text, end), ":")


def _value_of(path: Path, text: str, start: int, wanted: str) -> int:
    """Where the value of the first key `wanted` begins in the object at `start`."""
    places = [at for at, _, key, _ in _walk(path, text, start, True) if key == wanted]
    if not places:
        raise UserError(f"{path}:1: no key {wanted!r}; another file, or version?")
    return _key(path, text, places[0])[1]


def reject_constant(name: str) -> None:
    """For NaN and Infinity, which Python's decoder would take."""
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=reject_constant)


def _decoded(path: Path, text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _fault(path, text, error.pos, f"not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise _fault(path, text, at, f"not JSON ({error})"[:160]) from None


def _after_white(text: str, at: int) -> int:
    return _WHITE.match(text, at).end()


def _after_mark(path: Path, text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise _fault(path, text, at, f"expected {mark!r}, found {text[at : at + 40]!r}")
    return _after_white(text, at + 1)


def _fault(path: Path, text: str, at: int, why: str) -> UserError:
    return UserError(f"{path}:{text.count(chr(10), 0, at) + 1}: {why}; get the file again")

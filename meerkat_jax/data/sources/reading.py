"""Annotation files row by row: a bad row is counted and told, and takes no good one with it.

Every reader yields its rows with their line numbers and works on one physical line, or one JSON
value, at a time: a quote that is never closed spoils its own line, not the rest of the file. Byte
order marks, CRLF, blank lines and a missing last line break are as good as their absence. A file
that is not what it should be as a whole (absent, no text, other columns, broken JSON) is refused
with a UserError that names file and line.
"""

from __future__ import annotations

import csv
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources.byte_spans import json_spans, reject_constant
from meerkat_jax.data.sources.skips import RowError, Skips


def require(folder: Path, *names: str) -> list[Path]:
    """The files `names` below the source folder; UserError naming all that are missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--source_dir={folder} is not a folder; see docs/data.md for its layout")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: no {', '.join(missing)}; expected the layout in docs/data.md, "
            "where it is told where each file comes from"
        )
    return [folder / name for name in names]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line break) of each line that is not blank.

    UserError for a file that cannot be opened or a line that is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = raw.decode()
                except UnicodeDecodeError:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 text; get the file again"
                    ) from None
                text = text.rstrip("\r\n")
                if text.strip():
                    yield number, text
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def fields(line: str, delimiter: str = ",") -> list[str]:
    """The fields of one line of CSV; quotes as RFC 4180. RowError when a quote is left open."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration) as error:
        raise RowError(
            "a quote is left open or stands amid a field", f"{line[:80]!r} ({error})"
        ) from None
    return row


def table(
    path: Path,
    skips: Skips,
    columns: Sequence[str],
    header: bool = True,
    delimiter: str = ",",
    more: bool = False,
) -> Iterator[tuple[int, list[str]]]:
    """(line number, the values of `columns`) of each row of a CSV or TSV file.

    With `header` the first line names the columns, in any order and beside others; without, a row
    is `columns` in order. `more` allows rows with further fields. Rows with another number of
    fields, and open quotes, are faults of `skips`. UserError when the header lacks a column.
    """
    rows = lines(path)
    picks, width = list(range(len(columns))), len(columns)
    if header:
        number, first = next(rows, (1, ""))
        try:
            names = [name.strip() for name in fields(first, delimiter)]
        except RowError:
            names = []
        missing = [column for column in columns if column not in names]
        if missing:
            raise UserError(
                f"{path}:{number}: no column {', '.join(missing)}; expected a first line with "
                f"{delimiter.join(columns)!r}, found {first[:120]!r}: another file, or version?"
            )
        picks, width = [names.index(column) for column in columns], len(names)
    for number, line in rows:
        try:
            row = fields(line, delimiter)
            if len(row) != width and not (more and len(row) > width):
                raise RowError(
                    "wrong number of fields", f"{len(row)}, expected {width}: {line[:80]!r}"
                )
        except RowError as bad:
            skips.add(f"{path.name}:{number}", bad.reason, bad.detail)
            continue
        yield number, [row[pick] for pick in picks]


def json_lines(path: Path, skips: Skips) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a JSON-lines file; broken lines are faults."""
    for number, line in lines(path):
        try:
            yield number, json.loads(line, parse_constant=reject_constant)
        except (ValueError, RecursionError) as error:
            skips.add(f"{path.name}:{number}", "not JSON", f"{line[:80]!r} ({error})")


def json_items(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(line number, key or "", value) of each item of the JSON array or object that a file is.

    Items are decoded one after another, and an object's keys may come twice. UserError naming the
    line where the text stops being JSON or goes on behind its end, and for another kind of value.
    """
    for item in json_spans(path):
        yield item.line, item.key, item.value


# Values ------------------------------------------------------------------------------------------


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within `low` to `high`; RowError otherwise."""
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"{what} is not a number", shown(value)) from None
    if not (low <= found <= high and math.isfinite(found)):
        raise RowError(f"{what} is out of range", f"{found:g}, expected {low:g} to {high:g}")
    return found


def shown(value: Any) -> str:
    """A value in a message: short, and whatever it is."""
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"a {type(value).__name__}"


def words(value: Any, what: str) -> str:
    """A text that says something: entities resolved, white space single; RowError otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{what} is not a text", shown(value))
    text = " ".join(html.unescape(value).split())
    if not text:
        raise RowError(f"{what} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RowError(f"{what} has half a character", shown(text))
    return text


_NAME = re.compile(r"[\w.#$ +-]+")


def name(value: Any, what: str) -> str:
    """An identifier that names a file: no path separator, nothing that leaves its folder."""
    text = words(value, what)
    if not _NAME.fullmatch(text) or text.startswith("."):
        raise RowError(f"{what} is no name of a file", shown(text))
    return text


def member(value: Any, key: str, what: str = "row") -> Any:
    """`value[key]` of a JSON object; RowError when it is none, or has no such key."""
    if not isinstance(value, Mapping):
        raise RowError(f"{what} is not a JSON object", shown(value))
    if key not in value:
        raise RowError(f"no key {key!r}", f"found {', '.join(map(str, value))}"[:120])
    return value[key]


def interval(start: Any, end: Any, what: str = "time") -> tuple[float, float]:
    """(start, end) in seconds, in order and longer than nothing; RowError otherwise."""
    begin, stop = number(start, f"{what} start", 0.0), number(end, f"{what} end", 0.0)
    if stop <= begin:
        raise RowError(f"{what} ends before it begins", f"{begin:g} to {stop:g}")
    return begin, stop

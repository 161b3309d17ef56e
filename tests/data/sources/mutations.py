"""Spoils annotation files in a thousand ways, and checks what still has to come out of them."""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources.entry import Options

SETTINGS = settings(max_examples=int(os.environ.get("MEERKAT_FUZZ", 30)), deadline=None)
DEEP = [*range(3)]
for _ in range(60):
    DEEP = [DEEP]
ODD = [None, True, False, 0, -1, 7, 1.5, 1e308, 10**40, "", " ", "\u3000", "nan", "-inf", "1e999"]
ODD += [
    "\0",
    "&lt;b&gt;",
    "[]",
    "[1]",
    '["a"',
    "<",
    "../x",
    [],
    [None],
    {},
    {"a": 1},
    DEEP,
    "é",
    "x" * 999,
]

TEXT = st.sampled_from([b"\t", b",", b'"', b"\n", b"\r\n", b"{", b"[", b"null", b"NaN", b"-1"])
TEXT |= st.sampled_from([b"\xff", b"\xef\xbb\xbf", b"\0", b"9" * 5000, b"[" * 5000, b"\\ud800"])
PIECE = TEXT | st.binary(max_size=4)


@st.composite
def spoiled(draw, data: bytes) -> bytes:
    """`data` with some bytes replaced, deleted or inserted."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 2, 30]))
        data = data[:at] + draw(PIECE) + data[at + gone :]
    return data


@st.composite
def swapped(draw, rows: list) -> tuple[list, set[int]]:
    """`rows` of JSON with odd values in some places, and the numbers of the rows that have them."""
    rows, touched = copy.deepcopy(rows), set()
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(rows) - 1))
        touched.add(number)
        row = rows[number]
        if isinstance(row, dict) and row and draw(st.integers(0, 9)):
            key = draw(st.sampled_from(sorted(row)))
            if draw(st.integers(0, 4)):
                row[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            else:
                del row[key]
        else:
            rows[number] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return rows, touched


def dumped(rows: list) -> bytes:
    """A JSON array with one row on a line."""
    return ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]").encode()


def check_bytes(source, write: Callable[[Path], list], name: str, spoil: Callable) -> None:
    """Whatever bytes `name` has, entries of which no line was touched come out as before."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder)
        before = (folder / name).read_bytes()
        entries = source.plan(folder, Options()).entries
        after = spoil(before)
        (folder / name).write_bytes(after)
        found = planned(source, folder, name)
        if found is None or other_header(name, before, after):
            return
        for entry in entries:
            ident = entry.id.split("-", 2)[2].encode()
            if lines_with(ident, before) == lines_with(ident, after):
                assert found.get(entry.id) == entry


def planned(source, folder: Path, name: str) -> dict | None:
    """The entries by id; None after a UserError, which has to name file and line."""
    try:
        plan = source.plan(folder, Options())
    except UserError as error:
        assert re.search(rf"{re.escape(name)}:\d+", str(error)), error
        return None
    for fault in plan.skips.faults:
        assert re.fullmatch(r"[\w.-]+:\d+", fault.where)
    found = {entry.id: entry for entry in plan.entries}
    assert len(found) == len(plan.entries)
    return found


def lines_with(ident: bytes, data: bytes) -> list[bytes]:
    """The lines of `data` in which an id stands."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.rstrip(b"\r\n") for line in lines if ident in line]


def other_header(name: str, before: bytes, after: bytes) -> bool:
    """Whether a table has another first line: all rows may be of a wrong width then."""
    lines = [data.removeprefix(b"\xef\xbb\xbf").splitlines()[:1] for data in (before, after)]
    return name.endswith(".csv") and lines[0] != lines[1]


def check_rows(source, write: Callable[[Path], list], name: str, of_row: Callable, draw) -> None:
    """Whatever values the rows of `name` have, entries of other rows come out as before.

    of_row: what an id of an entry ends in, from its row.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder)
        rows = json.loads((folder / name).read_text(encoding="utf-8-sig"))
        entries = source.plan(folder, Options()).entries
        spoiled_rows, touched = draw(swapped(rows))
        (folder / name).write_bytes(dumped(spoiled_rows))
        found = planned(source, folder, name)
        assert found is not None, "a bad value must not cost the file"
        spoilt = {of_row(rows[number]) for number in touched}
        for entry in entries:
            if entry.id.split("-", 2)[2] not in spoilt:
                assert found.get(entry.id) == entry

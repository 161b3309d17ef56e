"""Spoils tables and files of one image each; what was not touched has to come out as before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from meerkat_jax.data.sources.entry import Entry, Options
from tests.data.sources.mutations import planned


def check_table(
    source, write: Callable, name: str, spoil: Callable, key: Callable[[Entry], str], header=True
) -> None:
    """Entries come out as before when no line with their `key`, and no header, was touched."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        before, after, entries = spoiled_tree(source, folder, write, name, spoil)
        found = planned(source, folder, name)
        lines = [data.removeprefix(b"\xef\xbb\xbf").split(b"\n") for data in (before, after)]
        if found is None or (header and lines[0][:1] != lines[1][:1]):
            return
        for entry in entries:
            mine = [[one for one in of if key(entry).encode() in one] for of in lines]
            if mine[0] == mine[1]:
                assert found.get(entry.id) == entry


def check_file(source, write: Callable, name: str, spoil: Callable, of: Callable) -> None:
    """No bytes of a file of one image cost more than the entries `of` it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _, _, entries = spoiled_tree(source, folder, write, name, spoil)
        found = planned(source, folder, name)
        assert found is not None, "one image must not cost the data set"
        for entry in entries:
            assert of(entry) or found.get(entry.id) == entry


def spoiled_tree(source, folder: Path, write, name: str, spoil) -> tuple[bytes, bytes, list[Entry]]:
    """Bytes of the file `name` before and after, and the entries before."""
    write(folder)
    entries = source.plan(folder, Options()).entries
    before = (folder / name).read_bytes()
    after = spoil(before)
    (folder / name).write_bytes(after)
    return before, after, entries

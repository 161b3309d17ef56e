"""Rows and examples that could not be used: counted by reason, each told with its place."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class RowError(ValueError):
    """A row that cannot be used. `reason` is short and the same for its like, `detail` is its own.

    Bad("box outside the image", "x1 is 1.3, expected 0 to 1").
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Skip(NamedTuple):
    """One thing left out: where ("train.csv:17", or an example's id), why, and what was found."""

    where: str
    reason: str
    detail: str


class Skips:
    """Collects what is left out.

    `used` counts rows that could be read, those dropped afterwards too. A *fault* is what should
    have been there; it counts against the limit of the build. What was left out on purpose (a
    caught leak, a class over its cap, a row twice) is counted in `dropped` by reason and told
    nowhere else. `noted` counts what was used, but not as it stood (a corner that was rounded) or
    with a doubt.
    """

    def __init__(self) -> None:
        self.used = 0
        self.faults: list[Skip] = []
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    def add(self, where: str, reason: str, detail: str = "") -> None:
        """Count one fault."""
        self.faults.append(Skip(where, reason, detail))

    def drop(self, reason: str, count: int = 1) -> None:
        """Count what is left out on purpose."""
        self.dropped[reason] += count

    @contextlib.contextmanager
    def row(self, path: Path, line: int) -> Iterator[None]:
        """Around the reading of one row: a `Bad` within counts as a fault and ends no more.

        Nothing is noted of a row that cannot be used.
        """
        before = dict(self.noted)
        try:
            yield
        except RowError as bad:
            self.noted.clear()
            self.noted.update(before)
            self.add(f"{path.name}:{line}", bad.reason, bad.detail)
        else:
            self.used += 1

    def by_reason(self) -> dict[str, int]:
        """Faults counted by reason, the most frequent first."""
        return dict(Counter(fault.reason for fault in self.faults).most_common())

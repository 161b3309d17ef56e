"""A line of progress now and then, with the rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Prints "compositions 320/800 scenes, 12.5 per second, 0:38 left" at most every few seconds.

    The rate is counted from the first report on: what is before it is mostly compilation.
    """

    def __init__(
        self, what: str, total: int, every: float = 5.0, say: Callable[[str], object] | None = None
    ):
        """`what` begins the line, `total` is how many there are, `every` is in seconds."""
        self.what, self.total, self.every = what, total, every
        self._say = say or (lambda line: print(line, flush=True))
        self._first: tuple[float, int] | None = None
        self._last = float("-inf")

    def report(self, done: int) -> None:
        """`done` of them are done."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if done < self.total and now - self._last < self.every:
            return
        self._last = now
        spent, count = now - self._first[0], done - self._first[1]
        line = f"{self.what} {done}/{self.total}"
        if count and spent > 0:
            left = (self.total - done) * spent / count
            line += f", {count / spent:.1f} per second, {int(left // 60)}:{int(left % 60):02d} left"
        self._say(line)

"""Examples of a source one after the other, for a writer that has a form of its own for records.

`shards.py` writes files of ours by several processes; here examples come in order as a stream, of
which few are held at once. What is planned, left out, refused and encoded is the same.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.progress import Progress
from meerkat_jax.data import media
from meerkat_jax.data.build import shards, validate
from meerkat_jax.data.example import Example
from meerkat_jax.data.pipeline import cores
from meerkat_jax.data.sources.entry import Entry, Options, Plan
from meerkat_jax.data.sources.registry import find
from meerkat_jax.data.sources.skips import RowError


class Conversion:
    """One run of making the examples of a source; what was left out so far is in `left_out`."""

    def __init__(
        self,
        source: str,
        root: Path,
        options: Options,
        settings: shards.Settings,
        max_skipped: float,
        exclude: tuple[Path, ...] = (),
        limit: int | None = None,
        workers: int | None = None,
        say: Callable[[str], Any] = print,
        max_leaking: float | None = None,
    ) -> None:
        """Plan, and look for media; UserError as of `shards.build`, for the same arguments.

        `workers` encode at once, default one for each core.
        """
        self.source, self.options, self.settings = source, options, settings
        self.max_skipped, self.workers = max_skipped, workers or cores()
        self.plan: Plan = find(source)(root, options)
        self.identity = shards.identify(source, self.plan, root, options, settings, exclude, limit)
        self.media_index = media.MediaIndex(root)
        self.found = validate.look_through(
            self.plan, self.media_index, max_skipped, exclude, limit, say, max_leaking=max_leaking
        )
        self.left_out: list[tuple[str, str, str]] = []
        self.told, self.noted = validate.lost(self.found), Counter()
        self.done, self.progress = 0, Progress("examples", int(self.found.keep.sum()), say=say)

    def shards(self) -> dict[str, list[np.ndarray]]:
        """For each split that has examples, those of each of its shards: int[n], for `examples`."""
        kept, size = np.flatnonzero(self.found.keep), self.settings.shard
        rows = {
            name: kept[self.found.split[kept] == number]
            for number, name in enumerate(validate.SPLITS)
        }
        return {
            name: [of[at : at + size] for at in range(0, len(of), size)]
            for name, of in rows.items()
            if len(of)
        }

    def examples(self, rows: np.ndarray) -> Iterator[tuple[int, Example]]:
        """(number in the plan, example) for `rows` int[n], in order, but for what cannot be used.

        UserError when that is too much. Threads encode: unlike processes they ask nothing of the
        script that calls this.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            for row, entry, future in self._encoded(pool, rows):
                self.done += 1
                try:
                    encoded = future.result()
                except RowError as bad:
                    self._leave_out(entry, bad)
                else:
                    self.noted.update(encoded.noted)
                    yield (
                        row,
                        shards.example(entry, self.source, encoded.image, encoded.audio),
                    )
                self.progress.report(self.done)

    def _encoded(
        self, pool: ThreadPoolExecutor, rows: np.ndarray
    ) -> Iterator[tuple[int, Entry, Future]]:
        """In order; at most two a worker are begun and not yet taken."""
        waiting: deque[tuple[int, Entry, Future]] = deque()
        for row in map(int, rows):
            entry = self.plan.entries[row]
            places = validate.places_of(self.media_index, entry)
            given = (entry, places, self.options.seconds, self.settings.audio)
            waiting.append((row, entry, pool.submit(shards.encode, *given)))
            if len(waiting) == 2 * self.workers:
                yield waiting.popleft()
        yield from waiting

    def _leave_out(self, entry: Entry, bad: RowError) -> None:
        self.left_out.append((entry.id, bad.reason, bad.detail))
        self.told[bad.reason] += 1
        total = len(self.plan.entries)
        validate.check_skipped(self.told, total, "examples", self.max_skipped, self.left_out)

    def manifest(self) -> dict[str, Any]:
        """What a built folder's manifest says of what it was made of and of what was left out."""
        skips = self.plan.skips
        return {
            **self.identity,
            "skipped": {"rows": skips.by_reason(), "examples": dict(self.told.most_common())},
            "dropped": dict(skips.dropped + self.found.leaking),
            "noted": dict(skips.noted + self.noted),
        }

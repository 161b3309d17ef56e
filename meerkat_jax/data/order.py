"""In which order records come: shuffled without end, and batches of short texts together.

Numbers alone, no record is read for it. The order depends on the seed, not on workers or hosts, and
can be begun anywhere. A window of some batches is sorted by the length that their texts need, cut
into batches, and these are shuffled: a batch is then hardly longer than its texts, and the mixture
is that of the window. Every example comes as often as without.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

import grain
import numpy as np

BATCHES = 64  # of a window
HELD = 4  # windows in memory: those that threads read from at once


def endless(
    counts: Sequence[int], shares: Sequence[float], seed: int, scenes: int | None = None
) -> grain.MapDataset:
    """Numbers of records without end; the first `counts[0]` numbers are those of the first source.

    Several sources are mixed in proportion to `shares`, each shuffled anew whenever it begins. With
    `scenes` only so many numbers are drawn, the first ones.
    """
    if len(counts) == 1 or scenes is not None:
        return grain.MapDataset.range(sum(counts))[:scenes].seed(seed).shuffle().repeat()
    ends = np.cumsum(counts).tolist()
    streams = [
        grain.MapDataset.range(end - count, end).seed(seed + i).shuffle().repeat()
        for i, (end, count) in enumerate(zip(ends, counts, strict=True))
    ]
    return grain.MapDataset.mix(streams, weights=list(shares)).seed(seed)


class Fitted:
    """(record, length) for each place of the order: the batches of a window by their length.

    needed: int[n], the length that each record's texts need; lengths: those that batches may have,
    rising; what needs more than the last has it all the same.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        needed: np.ndarray,
        lengths: Sequence[int],
        batch: int,
        seed: int,
    ) -> None:
        self.order, self.lengths, self.batch, self.seed = order, np.array(lengths), batch, seed
        self.smallest = np.searchsorted(self.lengths[:-1], needed).astype(np.uint8)
        self._begin()

    def _begin(self) -> None:
        self._held: collections.OrderedDict[int, list] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        """Without what only this process can use."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._begin()

    def __len__(self) -> int:
        size = BATCHES * self.batch
        return len(self.order) // size * size

    def __getitem__(self, index: int) -> tuple[int, int]:
        window, place = divmod(index, BATCHES * self.batch)
        with self._lock:
            if window not in self._held:
                self._held[window] = self._window(window)
                if len(self._held) > HELD:
                    self._held.popitem(last=False)
            return self._held[window][place]

    def _window(self, number: int) -> list[tuple[int, int]]:
        size = BATCHES * self.batch
        records = np.array([self.order[number * size + i] for i in range(size)])
        smallest = self.smallest[records]
        batches = np.argsort(smallest, kind="stable").reshape(BATCHES, self.batch)
        lengths = self.lengths[smallest[batches].max(axis=1)]
        shuffled = np.random.default_rng([self.seed, number]).permutation(BATCHES)
        records = records[batches[shuffled]].ravel()
        return list(
            zip(records.tolist(), lengths[shuffled].repeat(self.batch).tolist(), strict=True)
        )

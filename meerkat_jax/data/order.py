"""In which order records come: shuffled without end, batches of short texts together, all balanced.

Numbers alone, no record is read for it. The order depends on the seed, not on workers or hosts, and
can be begun anywhere. A window of some batches, an epoch at most, is rearranged within itself, so
every example comes as often as without:

- Each batch gets its share of the window's matched pairs and of its boxed ones, rounded down or up.
  AVOpT learns from matched pairs alone and AVACE from boxed ones. An unmatched pair has short texts
  (one false claim, no boxes), so batches by length alone would gather the unmatched.
- Within these shares, records whose texts need the same length come together, and the batches are
  shuffled: a batch is then hardly longer than its texts.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

import grain
import numpy as np

BATCHES = 64  # of a window, at most
HELD = 4  # windows in memory: those that threads read from at once
MATCHED, BOXED = 1, 2  # what a record's stratum is made of
RING = np.array([0, 1, 3, 2], np.uint8)  # stratum -> place; matched are neighbours, so are boxed


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


class BalancedBatches:
    """(record, length) for each place of the order: the windows' balanced batches.

    strata: uint8[n], of each record MATCHED | BOXED, what holds of it. needed: int[n], the length
    that each record's texts need; lengths: those that batches may have, rising; what needs more
    than the last has it all the same.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        strata: np.ndarray,
        needed: np.ndarray,
        lengths: Sequence[int],
        batch: int,
        seed: int,
    ) -> None:
        self.order, self.lengths, self.batch, self.seed = order, np.array(lengths), batch, seed
        self.smallest = np.searchsorted(self.lengths[:-1], needed).astype(np.uint8)
        self.places = RING[strata]
        self.batches = max(1, min(BATCHES, len(strata) // batch))
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
        size = self.batches * self.batch
        return len(self.order) // size * size

    def __getitem__(self, index: int) -> tuple[int, int]:
        window, place = divmod(index, self.batches * self.batch)
        with self._lock:
            if window not in self._held:
                self._held[window] = self._window(window)
                if len(self._held) > HELD:
                    self._held.popitem(last=False)
            return self._held[window][place]

    def _window(self, number: int) -> list[tuple[int, int]]:
        size = self.batches * self.batch
        records = np.array([self.order[number * size + i] for i in range(size)])
        smallest = self.smallest[records]
        batches = balanced(self.places[records], smallest, self.batches)
        lengths = self.lengths[smallest[batches].max(axis=1)]
        rng = np.random.default_rng([self.seed, number])
        shuffled = rng.permutation(self.batches)
        # Within a batch too, so that the parts of an accumulated one are alike.
        records = records[rng.permuted(batches[shuffled], axis=1)].ravel()
        return list(
            zip(records.tolist(), lengths[shuffled].repeat(self.batch).tolist(), strict=True)
        )


def balanced(places: np.ndarray, lengths: np.ndarray, batches: int) -> np.ndarray:
    """Cut n = batches * B records into batches that have their shares of each stratum.

    places: int[n] in 0..3, the record's place on RING; lengths: int[n]. Returns int[batches, B],
    which records are in which batch. Of each place, of neighbouring places together, and so of
    matched and of boxed records, a batch has the mean over the batches, rounded down or up.
    Batches are by rising length, as far as that allows.
    """
    ring = np.lexsort((lengths, places))
    # Cards dealt in turn: of a stretch of them, every batch gets as many as any other, or one more.
    dealt = places[ring].reshape(-1, batches)
    # How many of a place each batch gets is settled; which ones they are goes by length.
    owners = [np.repeat(np.arange(batches), (dealt == place).sum(axis=0)) for place in range(4)]
    return ring[np.argsort(np.concatenate(owners), kind="stable")].reshape(batches, -1)

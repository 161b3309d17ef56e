"""Counts of verdicts (AVFact: true or false), of which precision, recall and F1 are made.

An answer that could not be read (None) is neither a hit nor a false alarm, and where the truth is
positive it is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def verdict_counts(predicted: Sequence[bool | None], true: Sequence[bool]) -> np.ndarray:
    """int[n, 3]: hits, false alarms and misses of the verdict True; for `bootstrap.pooled`."""
    rows = [
        (said is True and known, said is True and not known, said is not True and known)
        for said, known in zip(predicted, map(bool, true), strict=True)
    ]
    return np.array(rows, int).reshape(-1, 3)

"""Scores of stretches of sound: segment F1 on 1 s segments and event F1 at an overlap of half.

Segment F1 is the one of sound event detection (AudioSet Strong): time is cut into 1 s segments, a
label is active in every segment that it touches, and hits are pooled over all clips (micro), as
`sed_eval` does. Event F1 matches whole events of the same label one to one at a temporal IoU of at
least 0.5 and pools likewise. Both need the right label; `any_label_f1` does not. These
serve every data set and need no further library; the scores that are a benchmark's own are in
events.py (onset and offset collars, means over classes) and parsing.py (LLP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from meerkat_jax.data.example import Segment
from meerkat_jax.evaluation.answer_parsing import normalise

Counts = tuple[int, int, int]


def active(
    segments: Sequence[Segment], resolution: float = 1.0, labelled: bool = True
) -> set[tuple[str, int]]:
    """(label, index) of every cell of `resolution` seconds that a segment touches."""
    cells = set()
    for s in segments:
        label = normalise(s.label) if labelled else ""
        # The slack keeps 3.0000001 s from touching the fourth second.
        first = math.floor(s.start / resolution + 1e-6)
        last = math.ceil(s.end / resolution - 1e-6)
        cells |= {(label, i) for i in range(first, last)}
    return cells


def segment_counts(
    predicted: Sequence[Segment],
    true: Sequence[Segment],
    resolution: float = 1.0,
    labelled: bool = True,
) -> Counts:
    """(hits, false alarms, misses) of one clip, in segments of `resolution` seconds."""
    p, t = active(predicted, resolution, labelled), active(true, resolution, labelled)
    return len(p & t), len(p - t), len(t - p)


def segment_iou(a: Segment, b: Segment) -> float:
    """Temporal intersection over union, 0..1."""
    overlap = max(min(a.end, b.end) - max(a.start, b.start), 0.0)
    union = max(a.end - a.start, 0.0) + max(b.end - b.start, 0.0) - overlap
    return overlap / union if union > 0 else 0.0


def event_counts(
    predicted: Sequence[Segment], true: Sequence[Segment], least: float = 0.5
) -> Counts:
    """(hits, false alarms, misses) of one clip in events matched at IoU >= `least`."""
    if not predicted or not true:
        return 0, len(predicted), len(true)
    good = np.array([[_same_event(p, t, least) for t in true] for p in predicted])
    rows, columns = linear_sum_assignment(~good)
    hits = int(good[rows, columns].sum())
    return hits, len(predicted) - hits, len(true) - hits


def f1(counts: Sequence[Counts]) -> dict[str, float]:
    """Pooled precision, recall and F1; all 1 where nothing was to be found and nothing was."""
    hits, false_alarms, misses = (sum(column) for column in zip(*counts, strict=True))
    if hits + false_alarms + misses == 0:
        return {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    return {
        "precision": hits / max(hits + false_alarms, 1),
        "recall": hits / max(hits + misses, 1),
        "f1": 2 * hits / (2 * hits + false_alarms + misses),
    }


def segment_samples(
    predicted: Sequence[Sequence[Segment]], true: Sequence[Sequence[Segment]]
) -> dict[str, list[Counts]]:
    """The counts of each clip in seconds, in seconds whatever the label, and in events.

    For `bootstrap.pooled`, which makes F1, precision and recall of each.
    """
    pairs = list(zip(predicted, true, strict=True))
    return {
        "segment": [segment_counts(p, t) for p, t in pairs],
        "any_label": [segment_counts(p, t, labelled=False) for p, t in pairs],
        "event": [event_counts(p, t) for p, t in pairs],
    }


def _same_event(a: Segment, b: Segment, least: float) -> bool:
    return normalise(a.label) == normalise(b.label) and segment_iou(a, b) >= least - 1e-9

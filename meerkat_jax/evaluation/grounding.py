"""Scores of boxes on images: cIoU and its AUC as in sound-source localisation, and plain box IoU.

cIoU (the paper's ARIG scores) is taken on a 224 x 224 grid between the union of the answered boxes
and the truth: `sum(pred * gt) / (sum(gt) + sum(pred * [gt == 0]))`. The truth is the union of the
boxes (VGG-SS), or what annotators agree on (Flickr-SoundNet): half a point for each of their boxes
that covers a cell, one at most. The benchmark reports the share of samples that reach 0.5, and the
AUC of that share over thresholds 0, 0.05, ..., 1. Labels play no part.

Grid, maps, thresholds and comparisons are those of the published evaluation codes
(github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way, github.com/stoneMo/EZ-VSL). These score
heat maps, the half of the image that responds most; here a model answers boxes. Two samples are
not as there, and neither occurs in a benchmark: without truth and answer cIoU is 1 (there 0 / 0),
and corners beyond the image are cut off (there they count from the other side).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from meerkat_jax.data.example import Box

GRID = 224
THRESHOLDS = 0.05 * np.arange(21)  # as published: 3 * 0.05 is a little more than 0.15
ENOUGH = 2  # annotators' boxes that make a cell certain


def region(boxes: Sequence[Box], size: int = GRID) -> np.ndarray:
    """bool[size, size]: the cells of any of the boxes, corners rounded down to whole cells."""
    return _counted(boxes, size) > 0


def consensus(annotators: Sequence[Sequence[Box]], size: int = GRID) -> np.ndarray:
    """float[size, size]: how sure several people's boxes are of each cell, 0, 0.5 or 1."""
    return np.minimum(_counted([box for some in annotators for box in some], size) / ENOUGH, 1)


def annotators_of(truth: Mapping[str, Any]) -> list[list[Box]] | None:
    """Each annotator's boxes in a question's truth; None where there are no several annotators."""
    drawn = truth.get("annotators")
    return [[Box(*box) for box in some] for some in drawn] if drawn else None


def ciou(
    predicted: Sequence[Box],
    true: Sequence[Box],
    size: int = GRID,
    annotators: Sequence[Sequence[Box]] | None = None,
) -> float:
    """Consensus IoU of two sets of boxes, 0..1. Nothing answered where nothing is true is 1.

    With `annotators` the truth is their consensus, and `true` is not looked at.
    """
    gt = region(true, size).astype(float) if annotators is None else consensus(annotators, size)
    pred = region(predicted, size)
    denominator = gt.sum() + (pred & (gt == 0)).sum()
    return float((pred * gt).sum() / denominator) if denominator else 1.0


def box_iou(a: Box, b: Box) -> float:
    """Exact intersection over union of two boxes, 0..1; boxes without area give 0."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    overlap = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - overlap
    return overlap / union if union > 0 else 0.0


def matched_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float:
    """Mean IoU under the best one-to-one matching; a missing or superfluous box counts as 0."""
    if not predicted or not true:
        return 1.0 if not predicted and not true else 0.0
    table = np.array([[box_iou(p, t) for t in true] for p in predicted])
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / max(table.shape))


def areas(values: Sequence[float]) -> np.ndarray:
    """float[n], whose mean is the AUC: the area under "share of samples with value >= t".

    t = 0, 0.05, ..., 1, by the trapezoid rule; of a sample by itself the share is 0 or 1.
    """
    reached = np.asarray(values, float)[:, None] >= THRESHOLDS
    return np.trapezoid(reached.astype(float), THRESHOLDS, axis=1)


def grounding_scores(
    predicted: Sequence[Sequence[Box]],
    true: Sequence[Sequence[Box]],
    weights: Sequence[float] | None = None,
    annotators: Sequence[Sequence[Sequence[Box]] | None] | None = None,
) -> dict[str, float]:
    """Scores over samples: `ciou` (share >= 0.5), `auc`, `mean_ciou`, `mean_iou`, `iou50`.

    `weights` (one per sample, default equal) lets a sample be one of several likely answers;
    `annotators` (one per sample, or None for it) makes cIoU one with their consensus.
    """
    samples = grounding_samples(predicted, true, annotators)
    return {name: float(np.average(v, weights=weights)) for name, v in samples.items()}


def grounding_samples(
    predicted: Sequence[Sequence[Box]],
    true: Sequence[Sequence[Box]],
    annotators: Sequence[Sequence[Sequence[Box]] | None] | None = None,
) -> dict[str, np.ndarray]:
    """float[samples] of each score, whose mean it is; for `bootstrap.means`."""
    people = annotators if annotators is not None else [None] * len(true)
    agreed = np.array(
        [ciou(p, t, annotators=a) for p, t, a in zip(predicted, true, people, strict=True)]
    )
    plain = np.array([matched_iou(p, t) for p, t in zip(predicted, true, strict=True)])
    return {
        "ciou": (agreed >= 0.5).astype(float),
        "auc": areas(agreed),
        "mean_ciou": agreed,
        "mean_iou": plain,
        # the slack keeps a half a half where corners are not exact in binary
        "iou50": (plain >= 0.5 - 1e-9).astype(float),
    }


def _counted(boxes: Sequence[Box], size: int) -> np.ndarray:
    """int[size, size]: how many of the boxes cover each cell."""
    cells = np.zeros((size, size), int)
    for box in boxes:
        x0, y0, x1, y1 = (int(size * max(value, 0.0)) for value in (box.x0, box.y0, box.x1, box.y1))
        cells[y0:y1, x0:x1] += 1
    return cells


def _area(box: Box) -> float:
    return max(box.x1 - box.x0, 0.0) * max(box.y1 - box.y0, 0.0)

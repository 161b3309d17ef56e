"""Scores of boxes on pictures: cIoU and its AUC as in sound-source localisation, and plain box IoU.

cIoU (VGG-SS, Flickr-SoundNet; the paper's ARIG scores) is taken on a 224 x 224 grid between the
union of the answered boxes and the union of the true ones:
`sum(pred * gt) / (sum(gt) + sum(pred * [gt == 0]))`. The benchmark reports the share of samples
that reach 0.5, and the AUC of that share over thresholds 0, 0.05, ..., 1. Labels play no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from meerkat_jax.data.example import Box

GRID = 224
THRESHOLDS = np.linspace(0.0, 1.0, 21)


def region(boxes: Sequence[Box], size: int = GRID) -> np.ndarray:
    """bool[size, size]: the cells whose centre lies in any of the boxes."""
    centres = (np.arange(size) + 0.5) / size
    mask = np.zeros((size, size), bool)
    for box in boxes:
        inside_x = (centres >= box.x0) & (centres < box.x1)
        inside_y = (centres >= box.y0) & (centres < box.y1)
        mask |= inside_y[:, None] & inside_x[None, :]
    return mask


def ciou(predicted: Sequence[Box], true: Sequence[Box], size: int = GRID) -> float:
    """Consensus IoU of two sets of boxes, 0..1. Nothing answered where nothing is true is 1."""
    pred, gt = region(predicted, size), region(true, size)
    denominator = gt.sum() + (pred & ~gt).sum()
    return float((pred & gt).sum() / denominator) if denominator else 1.0


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


def auc(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Area under "share of samples with value >= t" for t = 0, 0.05, ..., 1 (trapezoid rule)."""
    share = [_share(values, t, weights) for t in THRESHOLDS]
    return float(np.trapezoid(share, THRESHOLDS))


def grounding_scores(
    predicted: Sequence[Sequence[Box]],
    true: Sequence[Sequence[Box]],
    weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Scores over samples: `ciou` (share >= 0.5), `auc`, `mean_iou`, `iou50`.

    `weights` (one per sample, default equal) lets a sample be one of several likely answers.
    """
    consensus = [ciou(p, t) for p, t in zip(predicted, true, strict=True)]
    plain = [matched_iou(p, t) for p, t in zip(predicted, true, strict=True)]
    return {
        "ciou": _share(consensus, 0.5, weights),
        "auc": auc(consensus, weights),
        "mean_iou": float(np.average(plain, weights=weights)),
        "iou50": _share(plain, 0.5, weights),
    }


def _area(box: Box) -> float:
    return max(box.x1 - box.x0, 0.0) * max(box.y1 - box.y0, 0.0)


def _share(values: Sequence[float], threshold: float, weights: Sequence[float] | None) -> float:
    # The small slack keeps 0.15 >= 0.15 true where a threshold is not exact in binary.
    return float(np.average(np.asarray(values) >= threshold - 1e-9, weights=weights))

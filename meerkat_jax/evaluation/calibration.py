"""Does a probability mean what it says? Calibration of verdicts (AVFact).

The answers of this project give their evidence before the verdict, so the probability of a verdict
is that of its word at the place where the answer gives it, behind what the model itself has written
until there: True against False, whatever else could stand there (`verdict_chance`).

Binned by that probability, verdicts are calibrated where the share of true claims in a bin is the
bin's mean probability. ECE (expected calibration error; Guo et al., ICML 2017, here of the
probability of True) is the mean distance between the two, weighted by the bins' counts; Brier's
score is the mean squared error of the probability. Few samples alone give an ECE above zero, so
beside it stands what a perfectly calibrated model with these probabilities would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from meerkat_jax.evaluation.bootstrap import Summed

BINS = 10
DRAWN = 1000  # times that a calibrated model is imitated


def verdict_chance(true: tuple, false: tuple) -> float:
    """Probability of True against False, 0..1, of two answers that are alike until the verdict.

    Each is (token ids, their log-probabilities), as of `generation.likelihood`. What decides is the
    first token in which they differ; ValueError when there is none.
    """
    pairs = enumerate(zip(true[0], false[0], strict=False))
    place = next((i for i, (a, b) in pairs if a != b), None)
    if place is None:
        raise ValueError("the two answers do not differ")
    return float(1 / (1 + np.exp(np.float64(false[1][place]) - true[1][place])))


def calibration_sums(chances: Sequence[float], true: Sequence[bool], bins: int = BINS) -> Summed:
    """`ece` and `brier` of probabilities of True float[n], with the truths bool[n]."""
    chances, true = np.asarray(chances, float), np.asarray(true, float)
    member = np.eye(bins)[bin_of(chances, bins)]
    gaps = member * (chances - true)[:, None]
    table = np.column_stack([gaps, (chances - true) ** 2, np.ones(len(chances))])

    def score(sums: np.ndarray) -> dict[str, np.ndarray]:
        count = sums[..., -1]
        return {
            "ece": np.abs(sums[..., :bins]).sum(-1) / count,
            "brier": sums[..., bins] / count,
        }

    return Summed(table, score)


def bin_of(chances: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int[n]: which of `bins` equal parts of 0..1 each probability is in."""
    return np.minimum((np.asarray(chances) * bins).astype(int), bins - 1)


def reliability(
    chances: Sequence[float], true: Sequence[bool], bins: int = BINS
) -> list[dict[str, Any]]:
    """Of each bin: low, high, n, and where n > 0 the mean chance and the share of true claims."""
    chances, true = np.asarray(chances, float), np.asarray(true, float)
    place, found = bin_of(chances, bins), []
    for number in range(bins):
        here = place == number
        row: dict[str, Any] = {"low": number / bins, "high": (number + 1) / bins}
        row["n"] = int(here.sum())
        if here.any():
            row |= {"chance": float(chances[here].mean()), "true": float(true[here].mean())}
        found.append(row)
    return found


def calibrated_ece(chances: Sequence[float]) -> float:
    """The mean ECE of a model for which these probabilities are exactly right."""
    chances = np.asarray(chances, float)
    rng, member = np.random.default_rng(0), np.eye(BINS)[bin_of(chances)]
    true = rng.random((DRAWN, len(chances))) < chances
    return float(np.abs((chances - true) @ member).sum(-1).mean() / len(chances))

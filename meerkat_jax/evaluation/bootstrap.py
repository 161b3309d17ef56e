"""How sure is a score? Percentile bootstrap intervals over the samples of a benchmark.

A benchmark's samples (images, clips, questions) are drawn anew with replacement, as many as there
are, and scored; the middle 95 % of what many such draws score is the interval. Nearly all scores
here are functions of sums over samples (a mean, an F1 of pooled counts, BLEU), so a draw costs a
matrix product and not a new evaluation: that is `Summed`. For a score that is none of these there
is the slow path, `corpus_intervals`, which evaluates every draw.

The draws are those of `scipy.stats.bootstrap(method="percentile")` with the same seed. An interval
tells how the score varies with the samples, not with the seed of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 2000
CORPUS_DRAWS = 200  # of scores that take seconds to evaluate
CONFIDENCE = 0.95
_CELLS = 4_000_000  # draws times samples held at a time: 32 MB

Interval = tuple[float, float]
Scores = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Summed:
    """Scores that are functions of sums over samples.

    table float[n, k] (or a sparse array of SciPy): what each sample adds to each of k sums. `score`
    takes sums float[..., k] to {name: float[...]}.
    """

    table: Any
    score: Callable[[np.ndarray], Scores]

    def scores(self) -> dict[str, float]:
        """The scores of all samples together."""
        found = self.score(np.asarray(self.table.sum(axis=0), float).reshape(-1))
        return {name: float(value) for name, value in found.items()}


def means(values: Mapping[str, Sequence[float]]) -> Summed:
    """Scores that are the mean over samples of values[name][sample]."""
    names = list(values)
    columns = [np.asarray(values[name], float) for name in names]
    table = np.stack([*columns, np.ones(len(columns[0]))], axis=1)

    def score(sums: np.ndarray) -> Scores:
        return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(names)}

    return Summed(table, score)


def pooled(counts: Sequence[Sequence[float]], prefix: str = "", nothing: float = 1.0) -> Summed:
    """Precision, recall and F1 of counts float[n, 3]: hits, false alarms, misses of each sample.

    `nothing` is their value where nothing is true and nothing was said (scikit-learn: 0).
    """

    def score(sums: np.ndarray) -> Scores:
        hits, false_alarms, misses = np.moveaxis(sums, -1, 0)
        whole = hits + false_alarms + misses
        parts = {
            "precision": ratio(hits, hits + false_alarms),
            "recall": ratio(hits, hits + misses),
            "f1": ratio(2 * hits, hits + whole),
        }
        return {prefix + name: np.where(whole == 0, nothing, v) for name, v in parts.items()}

    return Summed(np.asarray(counts, float).reshape(-1, 3), score)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where `whole` is 0."""
    return np.where(whole == 0, 0.0, part / np.where(whole == 0, 1, whole))


def intervals(
    summed: Summed, draws: int = DRAWS, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """(low, high) of each score of `summed`."""
    found: dict[str, list[np.ndarray]] = {}
    for chosen in _drawn(summed.table.shape[0], draws, seed):
        times = np.apply_along_axis(np.bincount, 1, chosen, minlength=chosen.shape[1])
        sums = np.asarray((summed.table.T @ times.T).T, float)
        for name, value in summed.score(sums).items():
            found.setdefault(name, []).append(np.broadcast_to(value, len(sums)))
    return {name: _middle(np.concatenate(parts), confidence) for name, parts in found.items()}


def corpus_intervals(
    samples: int,
    score: Callable[[np.ndarray], Scores],
    draws: int = CORPUS_DRAWS,
) -> dict[str, Interval]:
    """(low, high) of scores that know no short cut: `score` is called for every draw.

    `score` takes the numbers int[samples] of the samples drawn, some of them several times. With
    200 draws an end of the interval rests on the five outermost: read it to one digit.
    """
    found: dict[str, list[float]] = {}
    for chosen in _drawn(samples, draws, seed=0):
        for row in chosen:
            for name, value in score(row).items():
                found.setdefault(name, []).append(float(value))
    return {name: _middle(np.asarray(values), CONFIDENCE) for name, values in found.items()}


def _drawn(samples: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """int[some draws, samples]: numbers of samples; the same whatever the chunks."""
    if samples < 1 or draws < 1:
        raise ValueError(f"{samples} samples and {draws} draws: expected one or more of each")
    rng, rows = np.random.default_rng(seed), max(_CELLS // samples, 1)
    for start in range(0, draws, rows):
        yield rng.integers(0, samples, (min(rows, draws - start), samples))


def _middle(values: np.ndarray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)

"""Scores of verdicts (AVFact: true or false) and of short answers (AVQA).

An answer that could not be read (None) is wrong: it is neither a hit nor a false alarm, and where
the truth is positive it is a miss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def verdict_scores(predicted: Sequence[bool | None], true: Sequence[bool]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of the verdict True."""
    pairs = list(zip(predicted, true, strict=True))
    hits = sum(p is True and t for p, t in pairs)
    claimed = sum(p is True for p, _ in pairs)
    positive = sum(map(bool, true))
    return {
        "accuracy": sum(p is not None and p == t for p, t in pairs) / len(pairs),
        "precision": hits / claimed if claimed else 0.0,
        "recall": hits / positive if positive else 0.0,
        "f1": 2 * hits / (claimed + positive) if claimed + positive else 0.0,
    }


def answer_scores(
    predicted: Sequence[str | None], acceptable: Sequence[Collection[str]]
) -> dict[str, float]:
    """Share of answers that are among the acceptable ones of their question."""
    right = [p in a for p, a in zip(predicted, acceptable, strict=True)]
    return {"accuracy": sum(right) / len(right)}

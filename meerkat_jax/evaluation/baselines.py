"""What one scores without looking, without hearing, or with the same answer every time.

Constants are chosen on the very truths that they are scored on, which favours them: a model above
them has used image and audio. Boxes and intervals of the baselines carry the right label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.evaluation.grounding import annotators_of, grounding_scores
from meerkat_jax.evaluation.segments import active, f1

People = Sequence[Sequence[Sequence[Box]] | None] | None
CENTRE = Box("", 0.25, 0.25, 0.75, 0.75)


def boxes(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """ARIG: the best constant box, and perfect boxes of what is seen, chosen without hearing."""
    true = [question.boxes for question in questions]
    people = [annotators_of(question.truth) for question in questions]
    found = {"constant_box": constant_box(true, people)}
    objects = [[Box(*o) for o in q.truth.get("objects") or ()] for q in questions]
    if all(objects):
        found["no_hearing_one"] = _one_of(objects, true, people)
        found["no_hearing_all"] = grounding_scores(objects, true, annotators=people)
    return found


def constant_box(true: Sequence[Sequence[Box]], people: People = None) -> dict[str, float]:
    """Scores of the mean true box or of the image's centre, whichever is better."""
    corners = [(b.x0, b.y0, b.x1, b.y1) for sample in true for b in sample]
    candidates = [CENTRE] + ([Box("", *np.mean(corners, axis=0).tolist())] if corners else [])
    scores = [grounding_scores([[b]] * len(true), true, annotators=people) for b in candidates]
    return max(scores, key=lambda s: (s["ciou"], s["mean_iou"]))


def intervals(questions: Sequence[Question], seconds: float) -> dict[str, list[list[Segment]]]:
    """IGATL: the whole clip, and the interval on whole seconds with the best segment F1.

    What is answered to each question, to be measured as answers are.
    """
    true = [question.segments for question in questions]
    last = int(np.ceil(seconds))
    candidates = [(a, b) for a in range(last) for b in range(a + 1, last + 1)]
    # Boolean grid [sample, second] for speed: labels are taken as right.
    grid = np.zeros((len(true), last), bool)
    for row, sample in zip(grid, true, strict=True):
        row[[i for _, i in active(sample, labelled=False) if i < last]] = True
    best = max(candidates, key=lambda c: _grid_f1(grid, *c))
    return {
        "whole_clip": _constant(true, 0.0, seconds),
        "best_interval": _constant(true, *best),
    }


def anything_sounds(questions: Sequence[Question]) -> list[str] | None:
    """AVFact 3 and 4: True where anything at all sounds in the interval; None without intervals."""
    if not all(question.truth.get("interval") for question in questions):
        return None
    verdicts = []
    for truth in (question.truth for question in questions):
        start, end = truth["interval"]
        verdicts.append(str(any(s[1] < end and s[2] > start for s in truth.get("sounds") or ())))
    return verdicts


def most_frequent(texts: Sequence[str]) -> str:
    """The most frequent text; the first of those in case of a tie."""
    return Counter(texts).most_common(1)[0][0]


def _one_of(objects, true, people) -> dict[str, float]:
    """Expected scores when one of the objects is answered, each equally likely."""
    rows = zip(objects, true, people, strict=True)
    picks = [([o], t, p, 1 / len(some)) for some, t, p in rows for o in some]
    predicted, expected, annotators, weights = zip(*picks, strict=True)
    return grounding_scores(predicted, expected, weights, annotators)


def _grid_f1(grid: np.ndarray, start: int, end: int) -> float:
    hits = int(grid[:, start:end].sum())
    claimed = (end - start) * len(grid)
    return f1([(hits, claimed - hits, int(grid.sum()) - hits)])["f1"]


def _constant(true, start: float, end: float):
    """One and the same interval for every clip, with as many right labels as the clip needs."""
    labels = [sorted({s.label for s in sample}) or [""] for sample in true]
    return [[Segment(label, start, end) for label in some] for some in labels]

"""Which class is named where another is true?

Of boxes (ARIG) and segments (IGATL) an answered item is compared with the true one that it overlaps
with: they are matched one to one so that their overlaps (IoU) sum to the most, and a true item that
no answer overlaps with was named "nothing". Of questions which object sounds (AVQA) the answer is
the last class name in it. Names are normalised as in words.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from meerkat_jax.data.text import parse_boxes, parse_segments
from meerkat_jax.evaluation.answer_parsing import canonical, normalise, read_answer
from meerkat_jax.evaluation.benchmark import Answered
from meerkat_jax.evaluation.grounding import box_iou
from meerkat_jax.evaluation.segments import segment_iou

NOTHING = "nothing"
WORST = 12  # pairs of classes that are listed

Pairs = list[tuple[str, str]]  # (true, said)


def confused(answered: Sequence[Answered], names: Collection[str]) -> dict[str, Pairs]:
    """(true, said) of every true item, by "arig", "igatl" and "avqa/which"; `names` the classes."""
    found: dict[str, Pairs] = defaultdict(list)
    for record in answered:
        question = record.question
        if question.task == "arig":
            said = parse_boxes(record.text).items
            found["arig"] += matched(question.boxes, said, box_iou)
        elif question.task == "igatl":
            said = parse_segments(record.text).items
            found["igatl"] += matched(question.segments, said, segment_iou)
        elif question.task == "avqa" and question.truth.get("kind") == "which":
            true = canonical(question.truth["answer"], "which")
            name = read_answer(record.text, "which", {*names, *true}) or NOTHING
            found["avqa/which"].append((name if name in true else min(true), name))
    return dict(found)


def matched(true: Sequence, said: Sequence, overlap: Callable[[Any, Any], float]) -> Pairs:
    """(true, said) label of each true item, matched by overlap; `NOTHING` where none overlaps."""
    partners = {}
    if true and said:
        table = np.array([[overlap(t, s) for s in said] for t in true])
        rows, columns = linear_sum_assignment(-table)
        partners = {t: said[s] for t, s in zip(rows, columns, strict=True) if table[t, s] > 0}
    names = [partners[i].label if i in partners else NOTHING for i in range(len(true))]
    return [(normalise(t.label), normalise(name)) for t, name in zip(true, names, strict=True)]


def summary(pairs: Pairs) -> dict[str, Any]:
    """Counts of (true, said) pairs as plain JSON.

    n; right, the share that is named right, beside that of always saying the most frequent class;
    nothing, the share without a name; worst [[true, said, count, share of the true ones]]; counts
    {true: {said: count}}, the most frequent first.
    """
    counts, of_class = Counter(pairs), Counter(true for true, _ in pairs)
    wrong = sorted((-n, *pair) for pair, n in counts.items() if pair[0] != pair[1])
    by_true: dict[str, dict[str, int]] = {name: {} for name, _ in of_class.most_common()}
    for (true, said), n in counts.most_common():
        by_true[true][said] = n
    n = len(pairs)
    return {
        "n": n,
        "right": sum(true == said for true, said in pairs) / n,
        "most_frequent": max(of_class.values()) / n,
        "nothing": sum(said == NOTHING for _, said in pairs) / n,
        "worst": [[t, s, -k, -k / of_class[t]] for k, t, s in wrong[:WORST]],
        "counts": by_true,
    }

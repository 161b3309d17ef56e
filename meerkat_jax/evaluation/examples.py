"""Which answers are shown: about as many right as wrong ones of every task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meerkat_jax.data.example import TASKS
from meerkat_jax.evaluation.benchmark import Answered, class_names, judge

SHOWN = 12  # of a benchmark


def choose(answered: Sequence[Answered], most: int = SHOWN) -> list[Answered]:
    """About as many right as wrong answers of every task, always the same ones; scenes vary."""
    names = class_names(answered)
    order = np.random.default_rng(0).permutation(len(answered))
    queues = []
    for number, task in enumerate(TASKS):
        found: dict[bool, list[Answered]] = {True: [], False: []}
        for record in (answered[i] for i in order if answered[i].question.task == task):
            found[bool(judge(record, names).right)].append(record)
        first, second = found[number % 2 == 0], found[number % 2 == 1]
        longest = max(len(first), len(second))
        both = [part[i : i + 1] for i in range(longest) for part in (first, second)]
        queues.append([record for part in both for record in part])
    chosen: list[Answered] = []
    while any(queues) and len(chosen) < most:
        for queue in queues:
            fresh = [r for r in queue if r.example_id not in {c.example_id for c in chosen}]
            if queue and len(chosen) < most:
                record = (fresh or queue)[0]
                queue.remove(record)
                chosen.append(record)
    return chosen

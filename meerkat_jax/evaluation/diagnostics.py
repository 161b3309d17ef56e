"""What the paper argues with, measured: alignment, attention, transport plans, certainty, names.

    rows = [*observe(model.sampler, records, answered)]   # runs the model; one row per pair
    found = diagnose(rows, answered, names)               # pure; what diagnostics.json holds

Every number stands as {"value", "interval", "chance"}: 95 % (bootstrap.py), and what an even spread
or a guess gives, where there is such a thing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from meerkat_jax.evaluation import confusion
from meerkat_jax.evaluation.benchmark import Answered, class_names
from meerkat_jax.evaluation.bootstrap import Summed, corpus_intervals, intervals, means
from meerkat_jax.evaluation.calibration import calibrated_ece, calibration_sums, reliability
from meerkat_jax.evaluation.model_outputs import Row, chances_of

HISTOGRAM = 24  # bins of distances


def diagnose(
    rows: Sequence[Row], answered: Sequence[Answered] = (), names: Collection[str] = ()
) -> dict[str, Any]:
    """Summary of one split: `avopt`, `avace`, `plan`, `calibration` and `confusion`.

    `names` are class names to look for in answers beside those in the truths of `answered`.
    A part that nothing is known about is left out: no pair with another sound to compare with, no
    boxes, no verdicts, no names.
    """
    known = class_names(answered) | frozenset(names)
    compared = [row for row in rows if row["matched"] and "shuffled" in row]
    parts = {
        "avopt": _avopt(compared),
        "plan": _plan(compared),
        "avace": {place: _avace(rows, place) for place in ("box", "silent")},
        "calibration": _calibration(answered, chances_of(rows, answered)),
        "confusion": {
            task: confusion.summary(pairs)
            for task, pairs in confusion.confused(answered, known).items()
            if pairs
        },
    }
    parts["avace"] = {place: found for place, found in parts["avace"].items() if found}
    return {"n": len(rows)} | {name: part for name, part in parts.items() if part}


def _avopt(rows: Sequence[Row]) -> dict[str, Any]:
    if not rows:
        return {}
    own = np.array([row["distance"] for row in rows])
    other = np.array([row["shuffled"]["distance"] for row in rows])
    nearer = (own < other) + 0.5 * (own == other)
    values = {"matched": own, "shuffled": other, "margin": other - own, "own_nearer": nearer}
    found = _numbers(means(values), {"margin": 0.0, "own_nearer": 0.5})

    def auc(drawn: np.ndarray) -> dict[str, float]:
        farther = mannwhitneyu(other[drawn], own[drawn], method="asymptotic").statistic
        return {"auc": float(farther) / len(drawn) ** 2}

    spread = corpus_intervals(len(rows), auc)
    found |= _number("auc", auc(np.arange(len(rows)))["auc"], spread, 0.5)
    edges = np.linspace(0, max(float(max(own.max(), other.max())), 1e-6), HISTOGRAM + 1)
    counts = {
        name: np.histogram(values[name], edges)[0].tolist() for name in ("matched", "shuffled")
    }
    return {"n": len(rows), **found, "histogram": {"edges": edges.tolist(), **counts}}


def _plan(rows: Sequence[Row]) -> dict[str, Any]:
    if not rows:
        return {}
    image, audio = rows[0]["tokens"]
    even = math.log(image * audio)
    own = np.array([row["entropy"] for row in rows])
    other = np.array([row["shuffled"]["entropy"] for row in rows])
    values = {"entropy": own, "relative": own / even, "shuffled": other}
    found = _numbers(means(values), {"entropy": even, "relative": 1.0, "shuffled": even})
    return {"n": len(rows), **found, "least": math.log(max(image, audio))}


def _avace(rows: Sequence[Row], place: str) -> dict[str, Any]:
    # Where nothing that is seen is heard, attention must lie somewhere: such pairs say nothing.
    some = [row[place] for row in rows if place in row and "box" in row]
    if not some:
        return {}
    values = {name: np.array([row[name] for row in some]) for name in ("mass", "peak")}
    chance = {
        "mass": float(np.mean([row["area"] for row in some])),
        "peak": float(np.mean([row["peak_chance"] for row in some])),
    }
    return {"n": len(some), **_numbers(means(values), chance)}


def _calibration(
    answered: Sequence[Answered], chances: Sequence[float | None]
) -> dict[str, dict[str, Any]]:
    """By task, and of all claims together as "avfact"."""
    groups: dict[str, list[tuple[float | None, bool]]] = defaultdict(list)
    for record, chance in zip(answered, chances, strict=True):
        if record.question.task.startswith("avfact"):
            known = chance, bool(record.question.truth["answer"])
            groups["avfact"].append(known)
            groups[record.question.task].append(known)
    found = {}
    for task, group in sorted(groups.items()):
        known = [pair for pair in group if pair[0] is not None]
        if known:
            p, true = zip(*known, strict=True)
            share = float(np.mean(true))
            sums, usual = calibration_sums(p, true), {"ece": calibrated_ece(p)}
            numbers = _numbers(sums, usual | {"brier": share * (1 - share)})
            found[task] = {"n": len(known), "without": len(group) - len(known), **numbers}
            found[task] |= {"true": share, "bins": reliability(p, true)}
    return found


def _numbers(summed: Summed, chance: dict[str, float]) -> dict[str, Any]:
    spread, found = intervals(summed), {}
    for name, value in summed.scores().items():
        found |= _number(name, value, spread, chance.get(name))
    return found


def _number(name: str, value: float, spread, chance: float | None) -> dict[str, Any]:
    known = {} if chance is None else {"chance": chance}
    return {name: {"value": value, "interval": list(spread[name])} | known}

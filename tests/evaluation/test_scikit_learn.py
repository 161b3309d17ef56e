"""Precision, recall, F1, accuracy and areas are scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from meerkat_jax.data.example import Question
from meerkat_jax.evaluation.grounding import THRESHOLDS, areas
from meerkat_jax.evaluation.measures import Answered, measure


def cases():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for size in (1, 2, 17, 200):
            yield rng.choice([True, False, None], size), rng.random(size) < share


def by_library(said, true):
    """An answer that could not be read claims nothing, and is never right."""
    claimed, options = [one is True for one in said], {"zero_division": 0}
    given = [bool(not t if one is None else one) for one, t in zip(said, true, strict=True)]
    return pytest.approx(
        {
            "accuracy": metrics.accuracy_score(true, given),
            "precision": metrics.precision_score(true, claimed, **options),
            "recall": metrics.recall_score(true, claimed, **options),
            "f1": metrics.f1_score(true, claimed, **options),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize(("said", "true"), list(cases()))
def test_verdicts(said, true):
    words = {True: "It is true.", False: "False", None: "who knows"}
    group = [
        Answered("id", "new", Question("avfact1", "?", "", truth={"answer": bool(t)}), words[s])
        for s, t in zip(said.tolist(), true.tolist(), strict=True)
    ]
    found = measure(group, ())
    assert found.scores() == by_library(said, true)
    assert found.counts == {"unparsed": said.tolist().count(None)}


def test_answers():
    rng = np.random.default_rng(1)
    said, true = rng.choice(list("abc"), 300).tolist(), rng.choice(list("abc"), 300).tolist()
    group = [
        Answered("id", "new", Question("avqa", "?", t, truth={"answer": t, "kind": "which"}), s)
        for s, t in zip(said, true, strict=True)
    ]
    found = measure(group, ()).scores()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))


@pytest.mark.parametrize("size", [1, 5, 300])
def test_area_under_the_overlap_curve(size):
    values = np.random.default_rng(size).random(size)
    share = [float(np.mean(values >= t)) for t in THRESHOLDS]
    assert areas(values).mean() == pytest.approx(metrics.auc(THRESHOLDS, share))

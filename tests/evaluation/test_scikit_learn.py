"""Precision, recall, F1, accuracy and areas are scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from meerkat_jax.evaluation.bootstrap import pooled
from meerkat_jax.evaluation.grounding import THRESHOLDS, auc
from meerkat_jax.evaluation.verdicts import answer_scores, verdict_scores


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
    expected = by_library(said, true)
    assert verdict_scores(said.tolist(), true.tolist()) == expected
    claimed = np.array([one is True for one in said])
    counts = np.stack([claimed & true, claimed & ~true, ~claimed & true], axis=1)
    found = pooled(counts, nothing=0.0).scores()
    assert found | {"accuracy": expected.expected["accuracy"]} == expected


def test_answers():
    rng = np.random.default_rng(1)
    said, true = rng.choice(list("abc"), 300), rng.choice(list("abc"), 300)
    found = answer_scores(said.tolist(), [{one} for one in true])
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))


@pytest.mark.parametrize("size", [1, 5, 300])
def test_area_under_the_overlap_curve(size):
    values = np.random.default_rng(size).random(size)
    share = [float(np.mean(values >= t)) for t in THRESHOLDS]
    assert auc(values) == pytest.approx(metrics.auc(THRESHOLDS, share))

"""Precision, recall and F1 of verdicts, by hand."""

import pytest

from meerkat_jax.evaluation.bootstrap import pooled
from meerkat_jax.evaluation.verdicts import verdict_counts


def scores(predicted, true):
    return pooled(verdict_counts(predicted, true), nothing=0.0).scores()


def test_verdicts_by_hand():
    found = scores([True, True, False, False, None], [True, False, False, True, True])
    assert found == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5})


def test_an_unread_verdict_claims_nothing_and_misses_what_is_true():
    assert verdict_counts([None, None], [True, False]).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_no_positive_at_all_gives_zero_and_not_an_error():
    found = scores([False, False], [False, False])
    assert found == {"precision": 0.0, "recall": 0.0, "f1": 0.0}

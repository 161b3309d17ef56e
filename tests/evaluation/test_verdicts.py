"""Accuracy, precision, recall and F1 of verdicts; accuracy of short answers."""

import pytest

from meerkat_jax.evaluation.verdicts import answer_scores, verdict_scores


def test_verdicts_by_hand():
    scores = verdict_scores([True, True, False, False, None], [True, False, False, True, True])
    assert scores == pytest.approx(
        {"accuracy": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}
    )


def test_an_unread_verdict_is_wrong_whatever_the_truth():
    assert verdict_scores([None, None], [True, False])["accuracy"] == 0.0


def test_no_positive_at_all_gives_zero_and_not_an_error():
    scores = verdict_scores([False, False], [False, False])
    assert scores == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_any_acceptable_answer_is_right():
    said = ["dog", "owl", None, "bee"]
    assert answer_scores(said, [{"dog", "owl"}, {"owl"}, {"owl"}, {"dog"}])["accuracy"] == 0.5

"""Segment and event F1 against values worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.data.example import Segment
from meerkat_jax.evaluation.segments import (
    active,
    event_counts,
    f1,
    segment_counts,
    segment_iou,
    segment_samples,
)

DOG = Segment("dog", 1.0, 4.0)


def segments():
    time = st.integers(0, 100).map(lambda t: t / 10)
    one = st.tuples(st.sampled_from(["dog", "owl"]), time, time).map(
        lambda s: Segment(s[0], min(s[1:]), max(s[1:]))
    )
    return st.lists(one, max_size=4)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1.0, 3.0, [1, 2]),
        (1.9, 3.1, [1, 2, 3]),
        (0.0, 0.4, [0]),
        (2.9999999, 4.0000001, [3]),
        (2.0, 2.0, []),
    ],
)
def test_every_second_that_is_touched_is_active(start, end, expected):
    assert sorted(i for _, i in active([Segment("dog", start, end)])) == expected


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([Segment("Dog", 2.0, 6.0)], [DOG], (2, 2, 1)),
        ([Segment("owl", 1.0, 4.0)], [DOG], (0, 3, 3)),
        ([DOG, Segment("dog", 2.0, 4.0)], [DOG], (3, 0, 0)),
        ([], [DOG], (0, 0, 3)),
        ([DOG], [], (0, 3, 0)),
    ],
)
def test_segment_counts(predicted, true, expected):
    assert segment_counts(predicted, true) == expected


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([Segment("dog", 1.0, 2.5)], [DOG], (1, 0, 0)),  # IoU of exactly a half
        ([Segment("dog", 1.0, 2.4)], [DOG], (0, 1, 1)),
        ([Segment("owl", 1.0, 4.0)], [DOG], (0, 1, 1)),
        ([DOG, DOG], [DOG], (1, 1, 0)),  # one event is found once
        # greedy matching by order would lose one of the two
        (
            [Segment("dog", 0.0, 6.0), Segment("dog", 0.0, 3.0)],
            [Segment("dog", 0.0, 4.0), Segment("dog", 2.0, 7.0)],
            (2, 0, 0),
        ),
    ],
)
def test_event_counts(predicted, true, expected):
    assert event_counts(predicted, true) == expected


def test_segment_iou():
    assert segment_iou(DOG, Segment("dog", 3.0, 5.0)) == pytest.approx(0.25)
    assert segment_iou(DOG, Segment("dog", 4.0, 5.0)) == 0.0
    assert segment_iou(Segment("", 1.0, 1.0), Segment("", 1.0, 1.0)) == 0.0


def test_counts_are_pooled_over_clips():
    assert f1([(2, 2, 1), (1, 0, 0)])["f1"] == pytest.approx(6 / 9)
    assert f1([(2, 2, 1)]) == pytest.approx({"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7})
    assert f1([(0, 0, 0)])["f1"] == 1.0
    assert f1([(0, 3, 0)])["f1"] == 0.0


def test_a_wrong_label_counts_only_with_labels():
    counts = segment_samples([[Segment("owl", 1.0, 4.0)], [DOG]], [[DOG], [DOG]])
    assert f1(counts["any_label"])["f1"] == 1.0
    assert f1(counts["segment"])["f1"] == f1(counts["event"])["f1"] == 0.5


@given(segments(), segments())
def test_counts_add_up(predicted, true):
    hits, false_alarms, misses = segment_counts(predicted, true)
    assert hits + false_alarms == len(active(predicted))
    assert hits + misses == len(active(true))
    hits, false_alarms, misses = event_counts(predicted, true)
    assert (hits + false_alarms, hits + misses) == (len(predicted), len(true))
    # what is found does not depend on who is called the truth
    assert event_counts(true, predicted)[0] == hits

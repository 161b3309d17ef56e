"""cIoU, AUC and box IoU against values worked out by hand and those of the published evaluation.

localisation_values.json says how the latter were made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.data.example import Box
from meerkat_jax.evaluation.bootstrap import means
from meerkat_jax.evaluation.grounding import (
    annotators_of,
    areas,
    box_iou,
    ciou,
    consensus,
    grounding_samples,
    grounding_scores,
    matched_iou,
    region,
)

LEFT = Box("a", 0.0, 0.0, 0.5, 1.0)
RIGHT = Box("b", 0.5, 0.0, 1.0, 1.0)
WHOLE = Box("c", 0.0, 0.0, 1.0, 1.0)
QUARTER = Box("d", 0.0, 0.0, 0.5, 0.5)


def a_box():
    corner = st.floats(0, 1, width=32)
    return st.tuples(corner, corner, corner, corner).map(
        lambda c: Box("x", min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
    )


def test_region_rows_are_y_and_columns_are_x():
    mask = region([Box("", 0.5, 0.0, 1.0, 0.25)], size=4)
    assert mask.tolist() == [[False, False, True, True]] + [[False] * 4] * 3


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([LEFT], [LEFT], 1.0),
        ([LEFT], [RIGHT], 0.0),
        ([WHOLE], [QUARTER], 0.25),  # a quarter / (a quarter + three quarters outside)
        ([QUARTER], [LEFT], 0.5),  # half of the truth is found, nothing outside it
        ([LEFT, RIGHT], [WHOLE], 1.0),  # the union counts
        ([LEFT, LEFT], [LEFT], 1.0),
        ([], [LEFT], 0.0),
        ([LEFT], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_ciou(predicted, true, expected):
    assert ciou(predicted, true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Box("", 0.1, 0.1, 0.4, 0.4), Box("", 0.2, 0.2, 0.5, 0.5), 0.04 / 0.14),
        (LEFT, RIGHT, 0.0),
        (Box("", 0.3, 0.3, 0.3, 0.9), LEFT, 0.0),
        (Box("", 0.3, 0.3, 0.3, 0.9), Box("", 0.3, 0.3, 0.3, 0.9), 0.0),
    ],
)
def test_box_iou(a, b, expected):
    assert box_iou(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([RIGHT, LEFT], [LEFT, RIGHT], 1.0),  # order is free
        ([LEFT], [LEFT, RIGHT], 0.5),  # one is missing
        ([LEFT, RIGHT, QUARTER], [LEFT], 1 / 3),  # two too many
        ([], [LEFT], 0.0),
        ([], [], 1.0),
    ],
)
def test_matched_iou(predicted, true, expected):
    assert matched_iou(predicted, true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], 1.0),
        ([0.0], 0.025),  # only threshold 0 is reached: half of the first step
        ([0.5], 0.525),  # 11 of 21 thresholds: ten whole steps and a half
        ([0.15], 0.125),  # 3 * 0.05 is above it, there as here
        ([0.1501], 0.175),
        ([0.0, 1.0], 0.5125),
    ],
)
def test_auc(values, expected):
    assert areas(values).mean() == pytest.approx(expected)


def test_scores_over_samples():
    scores = grounding_scores([[LEFT], [QUARTER], [WHOLE], []], [[LEFT]] * 2 + [[QUARTER]] * 2)
    assert scores["ciou"] == 0.5  # 1, 0.5, 0.25, 0
    assert scores["iou50"] == 0.5
    assert scores["mean_iou"] == pytest.approx(1.75 / 4)


def test_weights_are_probabilities_of_answers():
    scores = grounding_scores([[LEFT], [LEFT], [RIGHT]], [[LEFT]] * 3, weights=[1, 0.5, 0.5])
    assert scores["ciou"] == scores["mean_iou"] == pytest.approx(0.75)


@given(a_box(), a_box())
def test_iou_is_symmetric_and_bounded(a, b):
    assert 0 <= box_iou(a, b) <= 1 + 1e-9
    assert box_iou(a, b) == pytest.approx(box_iou(b, a))
    assert ciou([a], [b]) == pytest.approx(ciou([b], [a]))


@given(a_box(), a_box())
def test_ciou_of_single_boxes_is_their_iou_up_to_the_grid(a, b):
    smallest = min(side for box in (a, b) for side in (box.x1 - box.x0, box.y1 - box.y0))
    if smallest > 0.2:  # small boxes are coarse on 224 cells, whose corners are rounded down
        np.testing.assert_allclose(ciou([a], [b]), box_iou(a, b), atol=0.1)


# ---- the published evaluation ----

PUBLISHED = json.loads((Path(__file__).parent / "localisation_values.json").read_text())


def boxes(corners, size=1.0):
    return [Box("", *(value / size for value in four)) for four in corners]


@pytest.mark.parametrize("source", ["vggss", "flickr"])
def test_scores_are_the_published_ones(source):
    samples = PUBLISHED[source]["samples"]
    predicted = [boxes(sample["predicted"]) for sample in samples]
    if source == "flickr":
        people = [[boxes(some, 256) for some in sample["true"]] for sample in samples]
        true = [[box for some in one for box in some] for one in people]
    else:
        people, true = None, [boxes(sample["true"]) for sample in samples]
    each = grounding_samples(predicted, true, people)
    np.testing.assert_allclose(each["mean_ciou"], [s["ciou"] for s in samples], rtol=0, atol=1e-14)
    scores = grounding_scores(predicted, true, annotators=people)
    for name in ("ciou", "auc", "mean_ciou"):
        assert scores[name] == pytest.approx(PUBLISHED[source][name], abs=1e-12), name
    assert means(each).scores() == pytest.approx(scores)


def test_consensus_of_annotators():
    agreed = consensus([[LEFT], [QUARTER, WHOLE]], size=2)
    assert agreed.tolist() == [[1.0, 0.5], [1.0, 0.5]]  # three, one; two, one
    assert ciou([LEFT], [], annotators=[[LEFT], [RIGHT]]) == pytest.approx(0.5)
    assert ciou([LEFT], [], annotators=[[LEFT]]) == 1.0
    # what one of two has drawn counts half, and answering it is no false alarm
    assert ciou([WHOLE], [], annotators=[[LEFT, RIGHT], [LEFT]]) == 1.0
    assert ciou([LEFT], [], annotators=[[LEFT, RIGHT], [LEFT]]) == pytest.approx(2 / 3, abs=0.01)


def test_annotators_of_a_truth():
    truth = {"annotators": [[["a", 0.0, 0.0, 0.5, 1.0]], [["a", 0.5, 0.0, 1.0, 1.0]]]}
    assert annotators_of(truth) == [[LEFT], [Box("a", 0.5, 0.0, 1.0, 1.0)]]
    assert annotators_of({}) is None and annotators_of({"annotators": []}) is None


def test_samples_with_and_without_annotators_are_scored_together():
    scores = grounding_scores([[LEFT]] * 2, [[LEFT]] * 2, annotators=[None, [[RIGHT]]])
    assert scores["ciou"] == 0.5

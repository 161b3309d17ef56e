"""Conventions of boxes: each is read as it is told, none is guessed, and every guess is said."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.sources import jsonl
from meerkat_jax.data.sources.boxes import LEAST, ROUNDED, corners, written
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.text import parse_boxes, write_box

PIXELS = {"pixels": True, "size": [640, 480]}
# The same box in every convention that annotations.jsonl takes.
BOX = Box("dog", 0.25, 0.125, 0.5, 0.75)
SAME = [
    ({}, [0.25, 0.125, 0.5, 0.75]),
    ({"form": "xyxy"}, [0.25, 0.125, 0.5, 0.75]),
    ({"form": "xywh"}, [0.25, 0.125, 0.25, 0.625]),
    ({"form": "cxcywh"}, [0.375, 0.4375, 0.25, 0.625]),
    ({"form": "thousand"}, [250, 125, 500, 750]),
    (PIXELS, [160, 60, 320, 360]),
    (PIXELS | {"form": "xyxy"}, [160, 60, 320, 360]),
    (PIXELS | {"form": "xywh"}, [160, 60, 160, 300]),
    (PIXELS | {"form": "cxcywh"}, [240, 210, 160, 300]),
]
# Of 0 to 1: numbers that are corners and x, y, width, height alike; and that are the latter alone.
BOTH, XYWH = [0.1, 0.2, 0.3, 0.4], [0.6, 0.5, 0.2, 0.3]
unit = st.floats(0, 1)


def planned(folder, *boxes, **more):
    """The plan of a file with one box in each line."""
    rows = [
        {"image": f"{number}.jpg", "audio": "a.wav",
         "questions": [{"task": "arig", "boxes": [["dog", *numbers]], **more}]}
        for number, numbers in enumerate(boxes)
    ]  # fmt: skip
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return jsonl.plan(folder, Options())


@pytest.mark.parametrize(("told", "numbers"), SAME)
def test_every_convention_that_is_told_is_read(tmp_path, told, numbers):
    plan = planned(tmp_path, numbers, **told)
    assert not plan.skips.faults and not plan.skips.noted
    assert plan.entries[0].boxes == plan.entries[0].questions[0].boxes == (BOX,)


@pytest.mark.parametrize(
    ("told", "numbers", "reason", "guess"),
    [
        ({}, XYWH, "corners out of order", "x, y, width, height (form xywh)"),
        ({}, [0.9, 0.5, 0.6, 0.1], "corners out of order", ""),
        ({}, [0.9, 0.2, 0.8, 0.3], "corners out of order", ""),
        ({}, [0.3, 0.5, 0.1, 0.4], "corners out of order", "(form xywh) or middle, width"),
        ({}, [0.5, 0.9, 0.1, 0.4], "corners out of order", "perhaps x0, x1, y0, y1, to be"),
        ({}, [100, 200, 300, 400], "box outside the image", "0 to 1000 (form thousand) or pix"),
        ({}, [100, 200, 3000, 400], "box outside the image", "perhaps pixels (pixels and size)"),
        (PIXELS, [600, 400, 40, 80], "corners out of order", "x, y, width, height (form xywh)"),
        (PIXELS, [0.1, 0.2, 0.5, 0.9], "box within the first pixel", "are the numbers 0 to 1?"),
        ({"form": "thousand"}, [0.1, 0.2, 0.5, 0.9], "box within the first pixel", "0 to 1?"),
        ({"form": "xywh"}, [0.5, 0.5, 0.9, 0.9], "box outside the image", "x0, y0, x1, y1"),
        ({"form": "xywh"}, [0.5, 0.5, -0.1, 0.1], "corners out of order", ""),
        ({"form": "thousand"}, [1, 2, 1200, 4], "box outside the image", "of 1000 x 1000"),
        (PIXELS | {"form": "thousand"}, [1, 2, 3, 4], "form thousand with pixels", "size is"),
        ({}, [0.1, 0.2, 0.1, 0.3], "box without an area", ""),
        ({}, [0.1, 0.2, 0.1002, 0.3], "nothing is left of it in three decimals", "0.1002"),
    ],
)
def test_what_is_not_as_told_is_refused_with_a_guess(tmp_path, told, numbers, reason, guess):
    (fault,) = planned(tmp_path, numbers, **told).skips.faults
    assert fault.where == "annotations.jsonl:1" and fault.reason == reason
    assert "questions[0]." in fault.detail and guess in fault.detail
    assert guess or "perhaps" not in fault.detail


@pytest.mark.parametrize(
    ("told", "numbers", "box"),
    [
        ({}, [0.1, 0.2, 1.0000001, 0.9], Box("dog", 0.1, 0.2, 1.0, 0.9)),
        ({}, [-1e-9, 0.2, 0.5, 0.9], Box("dog", 0.0, 0.2, 0.5, 0.9)),
        (PIXELS, [64, 48, 640.01, 240], Box("dog", 0.1, 0.1, 1.0, 0.5)),
        ({"form": "xywh"}, [0.5, 0.5, 0.5000001, 0.5], Box("dog", 0.5, 0.5, 1.0, 1.0)),
    ],
)
def test_rounding_is_no_fault_but_noted(tmp_path, told, numbers, box):
    plan = planned(tmp_path, numbers, **told)
    assert not plan.skips.faults and plan.entries[0].boxes == (box,)
    assert plan.skips.noted == {ROUNDED: 1}
    plan.entries[0]  # reading it again notes nothing
    assert plan.skips.noted == {ROUNDED: 1}


def test_nothing_is_noted_of_a_row_that_is_left_out(tmp_path):
    row = {"image": "a.jpg", "audio": "a.wav", "boxes": [["dog", 0, 0, 1.0000001, 1]]}
    row["questions"] = [{"task": "avfact2", "answer": True, "response": "False."}]
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row))
    skips = jsonl.plan(tmp_path, Options()).skips
    assert len(skips.faults) == 1 and not skips.noted


def test_a_form_needs_the_boxes_that_it_is_of(tmp_path):
    row = {"image": "a.jpg", "audio": "a.wav", "form": "xywh"}
    row["questions"] = [{"task": "arig", "boxes": [["dog", *BOTH]]}]
    for more in ({}, PIXELS):
        (tmp_path / "annotations.jsonl").write_text(json.dumps(row | more))
        (fault,) = jsonl.plan(tmp_path, Options()).skips.faults
        assert fault.reason == "expected key 'boxes'"


# A file as a whole --------------------------------------------------------------------------------


def test_a_box_that_is_no_corners_tells_what_the_whole_file_is(tmp_path):
    with pytest.raises(UserError, match=r"jsonl:3: questions\[0\].boxes\[0\] is \[0.6.*all 8 box"):
        planned(tmp_path, *[BOTH] * 2, XYWH, *[BOTH] * (LEAST - 3))
    few = planned(tmp_path, BOTH, XYWH)
    assert "all 2 boxes without a form would be boxes as x, y, w" in few.skips.faults[0].detail
    assert len(planned(tmp_path, *[BOTH] * 7, XYWH, form="xywh").entries) == LEAST


def test_a_file_that_may_be_of_another_form_is_noted(tmp_path):
    plan = planned(tmp_path, *[BOTH] * LEAST)
    ((what, count),) = plan.skips.noted.items()
    assert count == LEAST and "x, y, width, height (form xywh)" in what
    assert not plan.skips.faults
    assert not planned(tmp_path, *[BOTH] * LEAST, form="xyxy").skips.noted
    assert not planned(tmp_path, *[BOTH] * (LEAST - 1)).skips.noted


def test_boxes_that_begin_at_the_corner_tell_no_form(tmp_path):
    assert not planned(tmp_path, *[[0.0, 0.0, 1.0, 1.0]] * LEAST).skips.noted


def test_one_box_that_is_corners_alone_speaks_for_corners(tmp_path):
    plan = planned(tmp_path, *[BOTH] * LEAST, XYWH, [0.5, 0.5, 1.0, 1.0])
    assert not plan.skips.noted
    (fault,) = plan.skips.faults
    assert fault.where == f"annotations.jsonl:{LEAST + 1}" and "without a form" not in fault.detail


# Numbers ------------------------------------------------------------------------------------------


@given(unit, unit, unit, unit)
def test_corners_are_in_order_in_the_picture_and_read_back_or_are_refused(a, b, c, d):
    noted = Counter()
    try:
        box = written(Box("dog", *corners([a, b, c, d], noted=noted)))
    except RowError as bad:
        assert a >= c or b >= d or "nothing is left" in bad.reason
        return
    assert [box.x0, box.y0, box.x1, box.y1] == [a, b, c, d] and not noted
    assert parse_boxes(write_box(box)).mended == 0


def test_a_stretch_of_which_nothing_is_left_is_refused():
    assert written(Segment("dog", 2.04, 2.06)) == Segment("dog", 2.04, 2.06)  # 2.0 to 2.1
    with pytest.raises(RowError, match="nothing is left of it in tenths of a second"):
        written(Segment("dog", 2.01, 2.02))

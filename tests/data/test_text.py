"""Boxes and times as text: exact writing, tolerant reading."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.text import (
    check_response,
    parse_boxes,
    parse_segments,
    parse_verdict,
    with_verdict,
    write_box,
    write_segment,
)
from meerkat_jax.errors import UserError

DOG = Box("dog", 0.1, 0.2, 0.5, 0.6)
BARK = Segment("dog", 1.2, 3.4)

labels = st.one_of(
    st.sampled_from(["dog", "Male speech, man speaking", "Boeing 747", "rock 'n' roll", "7"]),
    st.text(string.ascii_letters, min_size=1),
)
unit = st.floats(0, 1)
pairs = st.tuples(unit, unit).map(sorted)
times = st.tuples(st.floats(0, 600), st.floats(0, 600)).map(sorted)
# Texts near the form are likelier to trip the parser than arbitrary ones.
scraps = st.sampled_from(
    ["[", "]", ",", " ", "dog", "0.1", "-", "7", ".5", "to", "9" * 400, "1.", "'"]
)
near = st.lists(scraps).map("".join)


def numbers(item):
    return [getattr(item, name) for name in item.__dataclass_fields__ if name != "label"]


def test_exact_form():
    assert write_box(Box("dog", 0.1234, 0.25, 0.5, 0.75)) == "[dog, 0.123, 0.250, 0.500, 0.750]"
    assert write_segment(Segment("dog", 1.21, 3.38)) == "[dog, 1.2, 3.4]"
    assert write_box(Box("dog", -1e-9, 0, 1, 1)) == "[dog, 0.000, 0.000, 1.000, 1.000]"


@given(st.lists(st.tuples(labels, pairs, pairs), max_size=3), labels, times)
def test_round_trip_within_rounding(specs, name, span):
    boxes = [Box(label, xs[0], ys[0], xs[1], ys[1]) for label, xs, ys in specs]
    segment = Segment(name, *span)
    text = " and ".join([*map(write_box, boxes), write_segment(segment)]) + "."
    found = parse_boxes(text)
    assert found.mended == 0 and [b.label for b in found.items] == [b.label for b in boxes]
    for box, back in zip(boxes, found.items, strict=True):
        assert numbers(back) == pytest.approx(numbers(box), abs=0.0005 + 1e-9)
    heard = parse_segments(text)
    assert heard.mended == 0 and [s.label for s in heard.items] == [name]
    assert numbers(heard.items[0]) == pytest.approx(span, abs=0.05 + 1e-9)


@given(st.text())
def test_any_label_is_written_so_that_it_reads_back_or_is_refused(label):
    box = Box(label, 0.1, 0.2, 0.5, 0.6)
    try:
        text = write_box(box)
    except UserError:
        return
    assert parse_boxes(text).items == (box,) and parse_boxes(text).mended == 0


@given(st.one_of(st.text(), near))
def test_reading_never_raises_and_stays_in_range(text):
    boxes, segments = parse_boxes(text), parse_segments(text, seconds=10.0)
    for b in boxes.items:
        assert 0 <= b.x0 <= b.x1 <= 1 and 0 <= b.y0 <= b.y1 <= 1
    for s in segments.items:
        assert 0 <= s.start <= s.end <= 10
    assert boxes.mended <= len(boxes.items) and segments.mended <= len(segments.items)
    assert parse_verdict(text) in (True, False, None)


@pytest.mark.parametrize(
    "text",
    [
        "[dog,0.1,0.2,0.5,0.6]",
        "[ dog , 0.1 , 0.2 , 0.5 , 0.6 ]",
        "[dog 0.1 0.2 0.5 0.6]",
        "[dog: 0.1, 0.2, 0.5, 0.6]",
        "['dog', 0.1, 0.2, 0.5, 0.6]",
        "[dog, 0.1, 0.2, 0.5, 0.6",
        "dog, 0.1, 0.2, 0.5, 0.6]",
        "It barks: dog, 0.1, 0.2, 0.5, 0.6.",
        "[dog, 0.5, 0.6, 0.1, 0.2]",
        "[dog, 0.5, 0.2, 0.1, 0.6]",
        "[dog,\n0.1, 0.2, 0.5, .6]",
    ],
)
def test_slips_in_a_box_are_mended_and_counted(text):
    found = parse_boxes(text)
    assert found.items == (DOG,) and found.mended == 1


@pytest.mark.parametrize(
    "text",
    ["[dog,1.2,3.4]", "[dog, 3.4, 1.2]", "dog, 1.2, 3.4", "[dog, 1.2 to 3.4]", "[dog 1.2-3.4"],
)
def test_slips_in_a_time_are_mended_and_counted(text):
    found = parse_segments(text)
    assert found.items == (BARK,) and found.mended == 1


def test_missing_labels_and_values_slightly_out_of_range_are_mended():
    assert parse_boxes("[0.1, 0.2, 0.5, 0.6]").items == (Box("", 0.1, 0.2, 0.5, 0.6),)
    found = parse_boxes("[dog, -0.02, 0.2, 1.05, 0.6] [dog, 0.1, 0.2, 0.5, 0.6]")
    assert found.items == (Box("dog", 0.0, 0.2, 1.0, 0.6), DOG) and found.mended == 1
    late = parse_segments("[dog, -0.3, 10.4]", seconds=10.0)
    assert late.items == (Segment("dog", 0.0, 10.0),) and late.mended == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no dog.",
        "I count 3 dogs and 4 cats.",
        "[dog, 0.1, 0.2, 0.3]",
        "[dog, 0.1, 0.2, 0.3, 0.4, 0.5]",
        "[dog, 100, 200, 300, 400]",
        "[dog, nan, 0.2, 0.3, 0.4]",
        "[__import__('os'), a, b, c, d]",
    ],
)
def test_text_without_a_box_gives_none(text):
    assert parse_boxes(text).items == ()


def test_two_boxes_that_are_never_closed():
    found = parse_boxes("[dog, 0.1, 0.2, 0.5, 0.6; cat, 0.1, 0.2, 0.5, 0.6")
    assert [box.label for box in found.items] == ["dog", "cat"] and found.mended == 2


def test_a_box_is_no_segment_and_a_segment_no_box():
    text = f"The dog {write_box(DOG)} barks in {write_segment(BARK)}."
    assert parse_boxes(text).items == (DOG,) and parse_segments(text).items == (BARK,)


def test_numbers_inside_a_label_do_not_hide_the_box():
    assert parse_boxes("[Boeing 747 jet, 0.1, 0.2, 0.5, 0.6]").items[0].label == "Boeing 747 jet"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("True", True),
        ("false.", False),
        ("True? No: FALSE", False),
        ("I see a bee. I hear a bee: True.", True),
        ("untrue and falsehood", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(text, verdict):
    assert parse_verdict(text) is verdict


@pytest.mark.parametrize(
    "box",
    [
        Box("a [b", 0.1, 0.2, 0.3, 0.4),
        Box("", 0.1, 0.2, 0.3, 0.4),
        Box("dog", 0.3, 0.2, 0.1, 0.4),
        Box("dog", float("nan"), 0.2, 0.3, 0.4),
        Box("dog", 0.1, 0.2, 30.0, 0.4),
    ],
)
def test_what_would_not_read_back_is_not_written(box):
    with pytest.raises(UserError, match="cannot be written"):
        write_box(box)


def test_check_response():
    good = f"{write_box(DOG)} sounds in {write_segment(BARK)}"
    check_response(Question("arig", "?", good, (DOG,), (BARK,)))
    check_response(Question("avfact1", "?", "It is a dog: True."))
    for response, boxes in ((good, ()), (good.replace("0.5", "0.6"), (DOG,)), ("a dog", (DOG,))):
        with pytest.raises(UserError, match="reads back as boxes"):
            check_response(Question("arig", "?", response, boxes, (BARK,)))
    with pytest.raises(UserError, match="1 mended"):
        check_response(Question("igatl", "?", "dog, 1.2, 3.4", (), (BARK,)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I hear a dog: False.", "I hear a dog: True."),
        ("false, or rather TRUE", "false, or rather True"),
        ("It is untrue.", None),
        ("", None),
    ],
)
def test_the_last_verdict_is_replaced(text, expected):
    assert with_verdict(text, True) == expected
    assert expected is None or parse_verdict(with_verdict(text, False)) is False

"""Boxes and times as text: exact writing, tolerant reading."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.text import (
    Parsed,
    check_response,
    parse_boxes,
    parse_segments,
    vanishes,
    write_box,
    write_segment,
)

DOG = Box("dog", 0.1, 0.2, 0.5, 0.6)
BARK = Segment("dog", 1.2, 3.4)

labels = st.one_of(
    st.sampled_from(["dog", "Male speech, man speaking", "Boeing 747", "rock 'n' roll", "7"]),
    st.text(string.ascii_letters, min_size=1),
)
unit = st.floats(0, 1)
# With an extent: what is nothing when it is written is refused.
pairs = st.tuples(unit, unit).map(sorted).filter(lambda pair: pair[1] - pair[0] > 0.0011)
times = st.tuples(st.floats(0, 600), st.floats(0, 600)).map(sorted)
times = times.filter(lambda span: span[1] - span[0] > 0.11)
# Texts near the form are likelier to trip the parser than arbitrary ones.
scraps = st.sampled_from(
    ["[", "]", ",", " ", "dog", "0.1", "-", "7", ".5", "to", "9" * 400, "1.", "'", "−", "–", "1e-1"]
    + ["(", ")", "s", "%", ":", "0:07", "/", "e", "1e999", "px", "٣", "\x00"]
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
    "item",
    [
        Segment("dog", 2.01, 2.02),
        Segment("dog", 2.0, 2.0),
        Box("dog", 0.1001, 0.2, 0.1002, 0.6),
        Box("dog", 0.1, 0.6, 0.5, 0.6),
    ],
)
def test_what_is_nothing_when_written_is_refused(item):
    assert vanishes(item)
    with pytest.raises(UserError, match="nothing is left of it in"):
        (write_box if isinstance(item, Box) else write_segment)(item)


def test_a_thin_box_that_is_still_something_is_written():
    thin = Box("dog", 0.1004, 0.2, 0.1006, 0.6)  # "0.100" and "0.101"
    assert not vanishes(thin) and "0.100, 0.200, 0.101" in write_box(thin)


# How models write numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("[dog, −0.5, 2.0]", 0.0, 2.0),
        ("[dog, –0.5, 2.0]", 0.0, 2.0),
        ("[dog, 1e-1, 2.0]", 0.1, 2.0),
        ("[dog, 1.5E0, 2.0e+0]", 1.5, 2.0),
        ("[dog, 1.2s, 4.0s]", 1.2, 4.0),
        ("[dog, 1.2 sec, 4 seconds]", 1.2, 4.0),
        ("[dog, 0:01, 0:04.5]", 1.0, 4.5),
        ("[dog, 1:05, 1:07]", 65.0, 67.0),
        ("[dog, 1., 2.]", 1.0, 2.0),
        ("[dog, +1.2, 2]", 1.2, 2.0),
        ("[dog, 1.2 – 3.4]", 1.2, 3.4),
        ("[dog, 1.2–3.4]", 1.2, 3.4),
        ("[dog, 1.2 –3.4]", 1.2, 3.4),
        ("[dog, 1.2−3.4]", 1.2, 3.4),
        ("[dog, (1.2, 3.4)]", 1.2, 3.4),
        ("[dog, [1.2, 3.4]]", 1.2, 3.4),
        ("dog, 1s to 4s", 1.0, 4.0),
    ],
)
def test_numbers_of_a_time(text, start, end):
    assert parse_segments(text) == Parsed((Segment("dog", start, end),), 1)
    assert parse_boxes(text).items == ()


@pytest.mark.parametrize(
    "text",
    [
        "[dog, (0.1, 0.2), (0.5, 0.6)]",
        "[dog, (0.1,0.2),(0.5,0.6)]",
        "[dog, (0.1, 0.2, 0.5, 0.6)]",
        "[dog, [0.1, 0.2], [0.5, 0.6]]",
        "[dog, {0.1, 0.2}, {0.5, 0.6}]",
        "[dog, (0.1, 0.2) to (0.5, 0.6)]",
        "[dog, (0.1, 0.2)-(0.5, 0.6)]",
        "[dog, [0.1, 0.2] – [0.5, 0.6]]",
        '["dog", [0.1, 0.2, 0.5, 0.6]]',
        "(dog, (0.1, 0.2) (0.5, 0.6))",
        "[dog, 10%, 20%, 50%, 60%]",
        "[dog, 1e-1, 2e-1, .5, 6E-1]",
    ],
)
def test_points_and_numbers_of_a_box(text):
    assert parse_boxes(text) == Parsed((DOG,), 1)
    assert parse_segments(text).items == ()


@pytest.mark.parametrize(
    "text",
    [
        "[dog, 12px, 0.2, 0.3]",  # a unit that is not known
        "[dog, 1.2ms, 4.0ms]",
        "[dog, 1/2, 3/4]",
        "[dog, 1.2.3, 4.0, 5.0]",
        "[dog, 0:99, 1.2, 3.4]",
        "[dog, 1.2, 3.4, 5.6abc]",
        "[dog, ~0.5, 2.0, 3.0]",
        "[0.1x, 0.2, 0.3]",
        "dog x0.1, 0.2, 0.3",
        "[dog, ٣, 1.2, 3.4]",
        "[dog, ½, 1.2, 3.4]",
        "[dog, ⅔, 0.1, 0.2, 0.3]",
        "dog ½, 1.2, 3.4",
        "[dog, x1e-1, 0.5]",
        "[dog, x0:07s, 9.0]",
        "[dog, 0,1, 0,5]",  # decimal commas
        "[dog, 123, 456, 789, 999]",  # pixels, or of a thousand
        "<ref>dog</ref><box>(123,456),(789,900)</box>",
        "[dog, 10%, 20%]",  # of what time?
        "[dog, 0.1s, 0.2s, 0.3s, 0.4s]",  # a time is no place
        "dog (1.2, 3.4), (5.0, 6.0)",  # two times, or one box that is none
    ],
)
def test_what_could_mean_several_things_is_not_read(text):
    assert parse_boxes(text).items == () and parse_segments(text).items == ()


@pytest.mark.parametrize(
    "label", ["rock 2.0", "T-34", "9 mm", "Speech, man speaking", "MP3 player, small", "a-b", "4x4"]
)
def test_labels_with_digits_and_commas(label):
    box, span = Box(label, 0.1, 0.2, 0.5, 0.6), Segment(label, 1.2, 3.4)
    assert parse_boxes(write_box(box)) == Parsed((box,), 0)
    assert parse_segments(write_segment(span)) == Parsed((span,), 0)


signs = st.sampled_from(["", "-", "+", "−", "–", "~", "("])
digits = st.sampled_from(
    ["0", "1", "12", "0.5", ".5", "1.", "1e-1", "0:07", "1.2.3", "1/2", "٣", "½"]
)
units = st.sampled_from(["", "s", " s", "%", "px", "ms", "°", ")", "abc", "−"])
written = st.tuples(signs, digits, units).map("".join)


@given(st.lists(written, min_size=1, max_size=6), st.sampled_from([", ", ",", "; ", " , "]))
def test_no_part_of_a_number_ends_in_a_label(values, separator):
    text = f"[dog{separator}{separator.join(values)}]"
    for found in (parse_boxes(text), parse_segments(text)):
        assert {item.label for item in found.items} <= {"dog", ""}


@pytest.mark.parametrize(
    "piece",
    ["[", "]", "[dog, ", "1", "1 ", "1, ", "1 x ", " ", "1.2, 3.4 ", "[1, 2], ", "(1, 2), ", "9."]
    + ["[x, 12px, 0.2, 0.3", "x, 1, 2", "-", "−", ":00", "0:00 ", "[x [1, 2], ", "a1", "1e", "1s "]
    + [",", "\n"],
)  # fmt: skip
def test_long_texts_take_time_in_proportion(piece):
    text = f"[dog, 1.2{piece * (100_000 // len(piece))}"  # squares of this would never end
    parse_boxes(text), parse_segments(text)

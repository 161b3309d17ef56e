"""The record: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Example, Question, Segment, from_bytes, to_bytes

numbers = st.floats(0, 10, allow_nan=False)
names = st.text(min_size=1, max_size=8)
boxes = st.builds(Box, names, numbers, numbers, numbers, numbers)
truths = st.dictionaries(
    names, st.none() | st.booleans() | names | st.lists(st.lists(names | numbers, max_size=3))
)
questions = st.builds(
    Question,
    task=names,
    instruction=names,
    response=names,
    boxes=st.lists(boxes, max_size=3).map(tuple),
    segments=st.lists(st.builds(Segment, names, numbers, numbers), max_size=3).map(tuple),
    truth=truths,
)
examples = st.builds(
    Example,
    id=names,
    source=names,
    split=names,
    image=st.binary(max_size=20),
    audio=st.binary(max_size=20),
    questions=st.lists(questions, max_size=3).map(tuple),
    image_labels=st.lists(names, max_size=3).map(tuple),
    audio_labels=st.lists(names, max_size=3).map(tuple),
    boxes=st.lists(boxes, max_size=3).map(tuple),
    matched=st.booleans(),
)
GOOD = Example("one", "mini", "train", b"jpeg", b"flac", (Question("avc", "Say.", "I see."),))


@given(examples)
def test_round_trip(example):
    assert from_bytes(to_bytes(example)) == example


def test_bytes_are_those_of_the_plain_fields():
    assert to_bytes(GOOD) == msgpack.packb(dataclasses.asdict(GOOD))


def test_writing_something_else_is_an_error():
    broken = dataclasses.replace(GOOD, image_labels=({1, 2},))
    with pytest.raises(TypeError, match="not part of an example record"):
        to_bytes(broken)


FIELDS = msgpack.unpackb(to_bytes(GOOD))


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        to_bytes(GOOD)[:-3],
        to_bytes(GOOD) + b"\x00",
        msgpack.packb([1, 2]),
        msgpack.packb(FIELDS | {"colour": "red"}),
        msgpack.packb({key: value for key, value in FIELDS.items() if key != "audio"}),
        msgpack.packb(FIELDS | {"boxes": [{"label": "dog"}]}),
        msgpack.packb(FIELDS | {"questions": [3]}),
    ],
    ids=["empty", "no msgpack", "cut", "longer", "list", "more", "less", "box", "question"],
)
def test_a_foreign_record_is_one_clear_error(record):
    with pytest.raises(UserError, match="not an example record.*rebuild the data set"):
        from_bytes(record)

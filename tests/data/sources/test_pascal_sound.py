"""PASCAL Sound: VOC's boxes of the class that is heard, by a table of images and audio clips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources import pascal_sound
from meerkat_jax.data.sources.entry import Options, Place
from tests.data.sources import mutations, spoiling, tree_pascal_sound

HORSE = "pascal_sound-test-2008_000008--0SdAVK79lg_000030"


@pytest.fixture
def plan(tmp_path):
    tree_pascal_sound.write(tmp_path)
    return pascal_sound.plan(tmp_path, Options())


@pytest.fixture
def entries(plan):
    return {entry.id.removeprefix("pascal_sound-test-"): entry for entry in plan.entries}


def test_pairs_come_out(entries):
    assert list(entries) == [
        "2008_000008--0SdAVK79lg_000030",
        "2008_000008-speech.1",
        "2007_000032-_0SdAVK79lg",
        "2007_000032-two of them",
        "000006-moo",
    ]


def test_one_entry_in_full(plan):
    entry = plan.entries[0]
    assert entry.id == HORSE and entry.split == "test"
    assert entry.boxes == (Box("horse", 50 / 500, 0.0, 1.0, 1.0),)
    assert entry.image_labels == entry.audio_labels == ("horse",)
    assert entry.image == (Place("JPEGImages", "2008_000008"),)
    assert entry.audio == (Place("sounds", "-0SdAVK79lg_000030"),)
    assert entry.keys == ("image:2008_000008", "video:-0SdAVK79lg")
    (question,) = entry.questions
    assert question.task == "arig"
    assert question.response == "[horse, 0.100, 0.000, 1.000, 1.000]"


def test_corners_may_have_fractions_and_parts_are_not_meant(entries):
    entry = entries["2008_000008-speech.1"]
    assert entry.boxes == (Box("person", 199.5 / 500, 110.5 / 442, 0.6, 0.5),)
    assert entry.keys[1] == "pascal_sound:speech.1"


def test_all_things_of_the_class_are_the_answer(entries):
    entry = entries["2007_000032-_0SdAVK79lg"]
    assert entry.boxes == (Box("aeroplane", 0, 0, 0.5, 0.5), Box("aeroplane", 0.5, 0.5, 1, 1))
    assert entry.keys == ("image:2007_000032", "video:_0SdAVK79lg")


def test_two_classes_in_one_sound_are_one_question(entries):
    entry = entries["2007_000032-two of them"]
    assert entry.audio_labels == ("aeroplane", "person") and len(entry.boxes) == 3
    assert len(entry.questions) == 1


def test_a_corner_a_pixel_outside_is_put_on_the_border(entries):
    assert entries["000006-moo"].boxes == (Box("cow", 0.5, 0.5, 1.0, 1.0),)


def test_faults_are_told_with_their_lines(plan, tmp_path):
    assert [(fault.where, fault.reason) for fault in plan.skips.faults] == [
        ("pairs.csv:4", "audio is no name of a file"),
        ("pairs.csv:9", "class is not in the image"),
        ("pairs.csv:10", "annotation file cannot be read"),
        ("pairs.csv:11", "width is out of range"),
        ("pairs.csv:12", "box outside the image"),
        ("pairs.csv:13", "xmin is not a number"),
        ("pairs.csv:14", "class is empty"),
        ("pairs.csv:15", "wrong number of fields"),
    ]
    assert plan.skips.dropped == {"row twice": 1}
    assert plan.files[0] == tmp_path / "pairs.csv" and len(plan.files) == 6


@pytest.mark.parametrize("text", ["", "image,sound\n", "null", '{"image": []}'])
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=r"pairs\.csv:1: no column"):
        pascal_sound.plan(tmp_path, Options())


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no pairs\.csv"):
        pascal_sound.plan(tmp_path, Options())


def check_table(spoil, key):
    spoiling.check_table(pascal_sound, tree_pascal_sound.write, "pairs.csv", spoil, key)


@mutations.SETTINGS
@given(st.data())
def test_spoiled_table(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    check_table(spoil, lambda entry: entry.image[0].name)


@mutations.SETTINGS
@given(st.data())
def test_spoiled_picture(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    spoiling.check_file(
        pascal_sound,
        tree_pascal_sound.write,
        "Annotations/2008_000008.xml",
        spoil,
        lambda entry: entry.image[0].name == "2008_000008",
    )

"""Flickr-SoundNet: boxes of several people, kept apart in the truth for the consensus map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources import flickr_soundnet
from meerkat_jax.data.sources.boxes import ROUNDED
from meerkat_jax.data.sources.entry import Options, Place
from tests.data.sources import mutations, spoiling, tree_flickr_soundnet

ONE, TWO, LAST = (f"flickr_soundnet-test-{n}" for n in ("10000130166", "2432219254", "9999999999"))


@pytest.fixture
def tree(tmp_path):
    tree_flickr_soundnet.write(tmp_path)
    return tmp_path


@pytest.fixture
def plan(tree):
    return flickr_soundnet.plan(tree, Options())


@pytest.fixture
def entries(plan):
    return {entry.id: entry for entry in plan.entries}


def box(x0, y0, x1, y1):
    return Box("sound source", x0 / 256, y0 / 256, x1 / 256, y1 / 256)


def test_pictures_with_boxes_come_out(entries):
    assert list(entries) == [ONE, TWO, LAST]


def test_one_entry_in_full(entries):
    entry = entries[ONE]
    boxes = (box(10, 20, 128, 256), box(12, 18, 130, 250), box(0, 0, 256, 256))
    assert entry.boxes == boxes and entry.split == "test"
    assert entry.image_labels == entry.audio_labels == ()
    assert entry.keys == ("flickr:10000130166",)
    assert entry.image == (Place("Data", "10000130166"), Place("frames", "10000130166"))
    assert entry.audio == (Place("Data", "10000130166"), Place("audio", "10000130166"))
    (question,) = entry.questions
    assert question.task == "arig" and question.boxes == boxes
    assert question.response.startswith("[sound source, 0.039, 0.078, 0.500, 1.000] [sound")
    assert question.truth["annotators"] == [[list(vars(one).values())] for one in boxes]


def test_a_box_drawn_twice_is_one_answer_but_two_votes(entries):
    boxes = (box(0, 0, 64, 64), box(128, 128, 192, 192))
    assert entries[TWO].boxes == boxes
    drawn = entries[TWO].questions[0].truth["annotators"]
    assert drawn == [[list(vars(one).values()) for one in boxes], [list(vars(boxes[0]).values())]]


def test_the_consensus_map_can_be_made(entries):
    votes = np.zeros((224, 224))
    for boxes in entries[TWO].questions[0].truth["annotators"]:
        for _, x0, y0, x1, y1 in boxes:
            left, top, right, bottom = (int(224 * v) for v in (x0, y0, x1, y1))
            votes[top:bottom, left:right] += 1
    consensus = np.minimum(votes / 2, 1)
    assert (consensus[0, 0], consensus[120, 120], consensus[223, 0]) == (1.0, 0.5, 0.0)


def test_bad_boxes_leave_the_good_ones(entries):
    assert entries[LAST].boxes == (box(128, 0, 256, 64),)


def test_faults_are_told_with_their_files(plan):
    found = [(fault.where, fault.reason) for fault in plan.skips.faults]
    assert found == [
        ("9992947874.xml:1", "box outside the image"),
        ("9999999999.xml:1", "bbox has not five parts"),
        ("9999999999.xml:1", "box without an area"),
        ("9999999999.xml:1", "corners out of order"),
        ("broken.xml:1", "annotation file is not XML"),
    ]
    assert plan.skips.dropped == {"no box drawn": 1} and plan.skips.noted == {ROUNDED: 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test_list.txt", "2432219254.png\r\n\r\n2432219254.png\r\n7777.png\r\n?.png"),
        ("flickr_test.csv", "\ufeff2432219254,202\r\n2432219254,202\r\n\r\n7777,0\r\n,1\r\n"),
    ],
)
def test_only_listed_pictures_are_taken(tree, name, text):
    (tree / name).write_bytes(text.encode())
    plan = flickr_soundnet.plan(tree, Options())
    assert [entry.id for entry in plan.entries] == [TWO]
    faults = {fault.where.split(":")[0]: fault.reason for fault in plan.skips.faults}
    assert faults.keys() == {name}
    assert plan.skips.by_reason() == {"no annotation file": 1, "no id in the line": 1}
    assert plan.skips.dropped == {"row twice": 1}
    assert plan.files == (tree / name, tree / "Annotations/2432219254.xml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a>",
        "<a/><b/>",
        "<a>&none;</a>",
        '<?xml version="1.0" encoding="nonsense"?><a/>',
        '<?xml version="1.0" encoding="utf-32"?><a/>',
        "<a><b><bbox>" * 3,
    ],
)
def test_a_broken_file_costs_one_picture(tree, text):
    (tree / "Annotations/2432219254.xml").write_text(text)
    plan = flickr_soundnet.plan(tree, Options())
    assert [entry.id for entry in plan.entries] == [ONE, LAST]
    wheres = [f.where for f in plan.skips.faults if f.reason == "annotation file is not XML"]
    assert wheres == ["2432219254.xml:1", "broken.xml:1"]


def test_deep_or_growing_files_do_no_harm(tree):
    (tree / "Annotations/2432219254.xml").write_text("<a>" * 100_000 + "</a>" * 100_000)
    text = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        text += f'<!ENTITY {two} "{f"&{one};" * 20}">'
    (tree / "Annotations/10000130166.xml").write_text(text + "]><a>&i;</a>")
    assert [entry.id for entry in flickr_soundnet.plan(tree, Options()).entries] == [LAST]


def test_many_boxes_are_refused(tree):
    people = [[(0, 0, n + 1, 9) for n in range(17)]]
    text = tree_flickr_soundnet.xml("2432219254", people)
    (tree / "Annotations/2432219254.xml").write_text(text)
    plan = flickr_soundnet.plan(tree, Options())
    assert ("2432219254.xml:1", "more than 16 boxes") in [f[:2] for f in plan.skips.faults]


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder Annotations"):
        flickr_soundnet.plan(tmp_path, Options())
    with pytest.raises(UserError, match="not a folder"):
        flickr_soundnet.plan(tmp_path / "none", Options())


def test_a_list_that_is_no_text_is_refused(tree):
    (tree / "test_list.txt").write_bytes(b"1\n\xff\n")
    with pytest.raises(UserError, match=r"test_list\.txt:2"):
        flickr_soundnet.plan(tree, Options())


def listed(folder):
    tree_flickr_soundnet.write(folder)
    (folder / "test_list.txt").write_text("10000130166.png\n2432219254.png\n9999999999.png\n")


@mutations.SETTINGS
@given(st.data())
def test_spoiled_list(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    key = lambda entry: entry.keys[0].removeprefix("flickr:")  # noqa: E731
    spoiling.check_table(flickr_soundnet, listed, "test_list.txt", spoil, key, header=False)


@mutations.SETTINGS
@given(st.data())
def test_spoiled_picture(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    spoiling.check_file(
        flickr_soundnet,
        tree_flickr_soundnet.write,
        "Annotations/2432219254.xml",
        spoil,
        lambda entry: entry.id == TWO,
    )

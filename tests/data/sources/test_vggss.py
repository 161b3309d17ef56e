"""VGG-SS: boxes of its one JSON file become questions of where, and no bad box costs a good one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources import vggss
from meerkat_jax.data.sources.entry import Options, Place
from meerkat_jax.data.sources.skips import Skip
from meerkat_jax.data.text import parse_boxes
from tests.data.sources import mutations, tree_vggss


def planned(folder):
    plan = vggss.plan(folder, Options())
    return plan, {entry.id: entry for entry in plan.entries}


@pytest.fixture
def entries(tmp_path):
    tree_vggss.write(tmp_path)
    return planned(tmp_path)[1]


def with_rows(folder, rows):
    (folder / "vggss.json").write_bytes(mutations.dumped(rows))
    return planned(folder)


def test_clips_with_boxes_come_out(entries):
    files = ["-2-wdcN5vOw_000017", "_gEvCUcZ6w8_000030", "ORaz32CQ29k_000002"]
    files += ["Db6Hjt0x28k_000056", "ORaz32CQ29k_000012"]
    assert list(entries) == [f"vggss-test-{file}" for file in files]
    assert {entry.split for entry in entries.values()} == {"test"}


def test_one_entry_in_full(entries):
    entry = entries["vggss-test--2-wdcN5vOw_000017"]
    box = Box("female speech, woman speaking", 0.45, 0.190625, 0.584375, 0.47812499999999997)
    assert entry.boxes == (box,)
    assert entry.image_labels == entry.audio_labels == ("female speech, woman speaking",)
    assert entry.keys == ("video:-2-wdcN5vOw",)
    assert entry.matched and entry.seconds == 0.0
    (question,) = entry.questions
    assert question.task == "arig"
    assert question.response == "[female speech, woman speaking, 0.450, 0.191, 0.584, 0.478]"
    assert question.truth["objects"] == [list(vars(box).values())]


def test_media_are_looked_for_as_stills_then_clips_then_videos(entries):
    entry = entries["vggss-test-ORaz32CQ29k_000012"]
    clip = "ORaz32CQ29k_000012"
    assert entry.image[:2] == (Place("frames", clip), Place("clips", clip, 4.98))
    assert entry.image[2][:2] == ("videos", "ORaz32CQ29k")
    assert entry.image[2].at == pytest.approx(16.98)
    audio_clips = (Place("audio", clip), Place("clips", clip), Place("videos", "ORaz32CQ29k", 12.0))
    assert entry.audio == audio_clips


def test_all_boxes_are_the_answer(entries):
    (question,) = entries["vggss-test-ORaz32CQ29k_000002"].questions
    assert [box.x0 for box in question.boxes] == [0.121875, 0.765625]
    assert len(parse_boxes(question.response).items) == 2


def test_a_box_may_be_the_whole_picture(entries):
    assert entries["vggss-test-_gEvCUcZ6w8_000030"].boxes == (
        Box("police car (siren)", 0, 0, 1, 1),
    )


def test_labels_become_plain_words_and_bad_boxes_leave_the_good(entries):
    boxes = entries["vggss-test-Db6Hjt0x28k_000056"].boxes
    assert boxes == (Box("tom & jerry / cartoon", 0.1, 0.2, 0.3, 0.4),)


def test_rows_of_one_clip_are_one_question(entries):
    entry = entries["vggss-test-ORaz32CQ29k_000012"]
    assert [box.x1 for box in entry.boxes] == [0.75, 0.125]
    assert len(entry.questions) == 1


def test_faults_and_drops_are_counted(tmp_path):
    tree_vggss.write(tmp_path)
    plan, _ = planned(tmp_path)
    assert plan.skips.by_reason() == {
        "box without an area": 2,
        "box outside the image": 1,
        "more than 16 boxes": 1,
    }
    assert {fault.where for fault in plan.skips.faults} == {"vggss.json:1"}
    assert "Db6Hjt0x28k_000056" in plan.skips.faults[0].detail
    assert plan.skips.dropped == {"row twice": 1}
    assert plan.files == (tmp_path / "vggss.json",)


GOOD = {"file": "ORaz32CQ29k_000002", "class": "dog", "bbox": [[0.1, 0.2, 0.3, 0.4]]}
BAD = [
    (7, "row is not a JSON object"),
    ({}, "no key 'file'"),
    (GOOD | {"file": None}, "file is not <YouTube id>_<six digits>"),
    (GOOD | {"file": "ORaz32CQ29k_2"}, "file is not <YouTube id>_<six digits>"),
    (GOOD | {"file": "../../CQ29k_000002"}, "file is not <YouTube id>_<six digits>"),
    (GOOD | {"class": " "}, "class is empty"),
    (GOOD | {"class": "[_]"}, "class has no words"),
    (GOOD | {"class": "a\ud800b"}, "class has half a character"),
    (GOOD | {"class": "a\x07b"}, "class has control characters"),
    (GOOD | {"class": "0.5"}, "class has no words"),
    (GOOD | {"class": "a 1, 2"}, "label cannot be written in an answer"),
    (GOOD | {"class": "'dog'"}, "label cannot be written in an answer"),
    (GOOD | {"bbox": None}, "bbox is not a list of boxes"),
    (GOOD | {"bbox": []}, "no box"),
    (GOOD | {"bbox": [0.1, 0.2, 0.3, 0.4]}, "a box has not four numbers"),
    (GOOD | {"bbox": [[0.1, 0.2, 0.3, "a"]]}, "box corner is not a number"),
    (GOOD | {"bbox": [[0.1, 0.2, 0.3, 1.3]]}, "box outside the image"),
    (GOOD | {"bbox": [[0.3, 0.2, 0.3, 0.4]]}, "box without an area"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_told_with_its_line(tmp_path, row, reason):
    plan, entries = with_rows(tmp_path, [row, GOOD | {"file": "-----------_000001"}])
    assert list(entries) == ["vggss-test------------_000001"]
    (fault,) = plan.skips.faults
    assert isinstance(fault, Skip) and (fault.where, fault.reason) == ("vggss.json:2", reason)


@pytest.mark.parametrize(
    "text", ["", "null", '{"file": ', "[{},]", "[NaN]", "7", '[{"a": 1}', '{"a": []}']
)
def test_a_broken_file_is_refused(tmp_path, text):
    (tmp_path / "vggss.json").write_text(text)
    with pytest.raises(UserError, match=r"vggss\.json:1"):
        planned(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no vggss\.json"):
        planned(tmp_path)


def test_bom_crlf_and_blank_lines_do_not_matter(tmp_path):
    (tmp_path / "vggss.json").write_bytes(
        "\ufeff\r\n".encode() + json.dumps([GOOD], indent=1).replace("\n", "\r\n\r\n").encode()
    )
    assert list(planned(tmp_path)[1]) == ["vggss-test-ORaz32CQ29k_000002"]


def lined(folder):
    folder.mkdir(exist_ok=True)
    (folder / "vggss.json").write_bytes(mutations.dumped(tree_vggss.ROWS))


@mutations.SETTINGS
@given(st.data())
def test_spoiled_bytes(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    mutations.check_bytes(vggss, lined, "vggss.json", spoil)


@mutations.SETTINGS
@given(st.data())
def test_spoiled_values(data):
    mutations.check_rows(vggss, lined, "vggss.json", lambda row: row["file"], data.draw)

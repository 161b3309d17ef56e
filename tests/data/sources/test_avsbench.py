"""AVSBench: the table's clips and their masks become questions of where, a frame at a time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources import avsbench
from meerkat_jax.data.sources.entry import Options, Place
from meerkat_jax.data.sources.skips import RowError
from tests.data.sources import mutations, spoiling, tree_avsbench

HORSE = "avsbench-test-horse_clip-clop-_G3-4D-Mxoo"
TABLE = "s4_meta_data.csv"


@pytest.fixture
def plan(tmp_path):
    tree_avsbench.write(tmp_path)
    return avsbench.plan(tmp_path, Options())


@pytest.fixture
def entries(plan):
    return {entry.id: entry for entry in plan.entries}


def test_each_frame_with_a_mask_comes_out(entries):
    assert list(entries) == [
        "avsbench-train-helicopter--d9u2CymIxc_1",
        *(f"{HORSE}_{number}" for number in range(1, 6)),
        "avsbench-train-playing_ukulele-2fIX-p9h_q0_1",
    ]


def test_one_entry_in_full(entries):
    entry = entries["avsbench-train-helicopter--d9u2CymIxc_1"]
    assert entry.split == "train"
    assert entry.boxes == (Box("helicopter", 10 / 224, 20 / 224, 30 / 224, 60 / 224),)
    assert entry.image_labels == entry.audio_labels == ("helicopter",)
    assert entry.keys == ("video:-d9u2CymIxc",)
    assert entry.image == (
        Place("s4_data/visual_frames/train/helicopter", "-d9u2CymIxc_1"),
        Place("s4_data/raw_videos/train/helicopter", "-d9u2CymIxc", 15 / 16),
    )
    assert entry.audio == (
        Place("s4_data/audio_wav/train/helicopter", "-d9u2CymIxc"),
        Place("s4_data/raw_videos/train/helicopter", "-d9u2CymIxc"),
    )
    (question,) = entry.questions
    assert question.task == "arig"
    assert question.response == "[helicopter, 0.045, 0.089, 0.134, 0.268]"


def test_frames_of_a_test_clip_have_their_own_times_and_boxes(entries):
    frames = [entries[f"{HORSE}_{number}"] for number in range(1, 6)]
    assert [frame.image[1].at for frame in frames] == [n + 15 / 16 for n in range(5)]
    assert [frame.seconds for frame in frames] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [frame.boxes[0].x1 for frame in frames] == [n * 40 / 224 for n in range(1, 6)]
    assert {frame.boxes[0].label for frame in frames} == {"horse clip-clop"}
    assert {frame.split for frame in frames} == {"test"}


def test_the_box_is_around_all_pieces_of_a_mask(entries):
    (box,) = entries["avsbench-train-playing_ukulele-2fIX-p9h_q0_1"].boxes
    assert box == Box("playing ukulele", 0.0, 0.0, 1.0, 1.0)


def test_faults_are_told_with_their_lines(plan):
    assert {(fault.where, fault.reason) for fault in plan.skips.faults} == {
        (f"{TABLE}:7", "split is not train, val or test"),
        (f"{TABLE}:8", "name is no name of a file"),
        (f"{TABLE}:9", "category is empty"),
        (f"{TABLE}:10", "wrong number of fields"),
        (f"{TABLE}:11", "no mask"),
        (f"{TABLE}:12", "mask is empty"),
        (f"{TABLE}:13", "mask cannot be read"),
    }
    assert plan.skips.dropped == {"row twice": 1, "validation split": 1}


def test_table_and_masks_are_the_files(plan, tmp_path):
    assert plan.files[0] == tmp_path / TABLE
    assert len(plan.files) == 1 + len(plan.entries)
    assert all(path.is_file() for path in plan.files)


def test_columns_may_stand_in_any_order(tmp_path):
    tree_avsbench.write(tmp_path)
    (tmp_path / TABLE).write_text("split,name,more,category\ntrain,-d9u2CymIxc,x,helicopter\n")
    assert len(avsbench.plan(tmp_path, Options()).entries) == 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode_are_read(tmp_path, mode):
    path = tree_avsbench.mask(tmp_path, "train/a/b", 1, [(56, 112, 168, 224)], mode)
    assert avsbench.mask_box(path) == (0.25, 0.5, 0.75, 1.0)


def test_a_mask_is_cut_at_half_grey(tmp_path):
    pixels = np.full((4, 4), 127, np.uint8)
    pixels[1, 2] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert avsbench.mask_box(tmp_path / "a.png") == (0.5, 0.25, 0.75, 0.5)


def test_a_picture_of_another_kind_or_a_folder_is_no_mask(tmp_path):
    data = io.BytesIO()
    Image.new("L", (8, 8), 255).save(data, "JPEG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png", "x" * 300 + ".png"):
        with pytest.raises(RowError, match="mask cannot be read"):
            avsbench.mask_box(tmp_path / name)


def test_a_huge_mask_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (5000, 5000)).save(tmp_path / "a.png")
    with pytest.raises(RowError, match="mask is too large"):
        avsbench.mask_box(tmp_path / "a.png")


@pytest.mark.parametrize("text", ["", "name,category\na,b\n", "\0", '"name'])
def test_another_table_is_refused(tmp_path, text):
    tree_avsbench.write(tmp_path)
    (tmp_path / TABLE).write_text(text)
    with pytest.raises(UserError, match=r"s4_meta_data\.csv:1: no column"):
        avsbench.plan(tmp_path, Options())


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no s4_meta_data\.csv"):
        avsbench.plan(tmp_path, Options())
    (tmp_path / TABLE).write_text(tree_avsbench.TABLE)
    with pytest.raises(UserError, match="no folder s4_data/gt_masks"):
        avsbench.plan(tmp_path, Options())


def named(entry):
    return entry.keys[0].removeprefix("video:")


@mutations.SETTINGS
@given(st.data())
def test_spoiled_table(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    spoiling.check_table(avsbench, tree_avsbench.write, TABLE, spoil, named)


@mutations.SETTINGS
@given(st.data())
def test_spoiled_mask(data):
    spoil = lambda before: data.draw(mutations.spoiled(before))  # noqa: E731
    mask = "s4_data/gt_masks/test/horse_clip-clop/_G3-4D-Mxoo/_G3-4D-Mxoo_3.png"
    spoiling.check_file(
        avsbench, tree_avsbench.write, mask, spoil, lambda entry: entry.id == f"{HORSE}_3"
    )

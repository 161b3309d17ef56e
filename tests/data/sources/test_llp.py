from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Segment
from meerkat_jax.data.sources import llp
from meerkat_jax.data.sources.entry import Options, Place
from meerkat_jax.data.text import parse_segments
from tests.data.sources import mutations, tree_llp

BABY, KITCHEN, STREET = (line.split("\t")[0] for line in tree_llp.TEST[:3])


@pytest.fixture
def folder(tmp_path):
    tree_llp.write(tmp_path)
    return tmp_path


def plan(folder):
    return llp.plan(folder, Options())


def entry(folder, video):
    return next(one for one in plan(folder).entries if one.id == f"llp-test-{video}")


def add(folder, file, *lines):
    path = folder / file
    path.write_bytes(path.read_bytes() + "\n".join(["", *lines, ""]).encode())
    return path.read_text(encoding="utf-8-sig").split("\n").index(lines[0]) + 1


def test_good_rows_make_test_entries(folder):
    made = plan(folder)
    assert [one.id for one in made.entries] == [f"llp-test-{v}" for v in (BABY, KITCHEN, STREET)]
    assert {one.split for one in made.entries} == {"test"}
    assert not made.skips.faults
    assert dict(made.skips.dropped) == {
        "row twice": 2,
        "validation split": 2,
        "nothing is both heard and seen": 2,
    }
    assert [path.name for path in made.files] == list(llp.FILES)
    assert made.entries == plan(folder).entries


def test_an_entry_in_full(folder):
    one = entry(folder, BABY)
    assert one.image == (
        Place("frames", BABY),
        Place("videos", BABY, 3.5),
        Place("videos", "-YdbENYcIyE", 3.5),
    )
    assert one.audio == (
        Place("audio", BABY),
        Place("audio", "-YdbENYcIyE"),
        Place("videos", BABY),
        Place("videos", "-YdbENYcIyE"),
    )
    assert one.keys == ("video:-YdbENYcIyE",)
    assert (one.image_labels, one.audio_labels) == (
        ("baby cry infant cry",),
        ("baby cry infant cry",),
    )
    assert (one.seconds, one.matched, one.boxes) == (4.0, True, ())
    (question,) = one.questions
    assert question.response == "[baby cry infant cry, 0.0, 4.0]"
    assert question.segments == (Segment("baby cry infant cry", 0.0, 4.0),)
    assert question.truth["kind"] == "igatl"
    assert question.truth["sounds"] == [["baby cry infant cry", 0.0, 4.0]]
    assert question.truth["audio_events"] == [["baby cry infant cry", 0.0, 4.0]]
    assert question.truth["visual_events"] == [["baby cry infant cry", 0.0, 10.0]]


def test_an_event_is_audio_visual_where_both_files_have_it(folder):
    (question,) = entry(folder, STREET).questions
    assert question.segments == (
        Segment("motorcycle", 1.0, 5.0),
        Segment("violin fiddle", 5.0, 6.0),
        Segment("motorcycle", 7.0, 9.0),
    )
    assert question.truth["audio_events"] == [
        ["motorcycle", 0.0, 5.0],
        ["motorcycle", 7.0, 10.0],
        ["violin fiddle", 4.0, 6.0],
    ]
    assert question.truth["visual_events"] == [
        ["motorcycle", 1.0, 9.0],
        ["violin fiddle", 5.0, 6.0],
    ]
    assert parse_segments(question.response).mended == 0


def test_events_of_one_modality_are_in_the_truth_alone(folder):
    one = entry(folder, KITCHEN)
    (question,) = one.questions
    assert [s.label for s in question.segments] == ["frying food", "blender"]
    assert ["speech", 0.0, 8.0] in question.truth["audio_events"]
    assert "speech" in one.audio_labels and "speech" not in one.image_labels


def test_the_picture_is_of_the_second_with_most_events(folder):
    assert entry(folder, KITCHEN).image[1] == Place("videos", KITCHEN, 5.5)
    assert entry(folder, KITCHEN).image_labels == ("blender", "frying food")
    assert entry(folder, BABY).image[1].at == 3.5  # of 0 to 3 the nearest to the middle


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{BABY}\t9\t9\tSpeech", "event ends before it begins"),
        (f"{BABY}\t9\t0\tSpeech", "event ends before it begins"),
        (f"{BABY}\t0\t11\tSpeech", "offset is out of range"),
        (f"{BABY}\t-1\t1\tSpeech", "onset is out of range"),
        (f"{BABY}\t0.5\t2\tSpeech", "onset is not a whole second"),
        (f"{BABY}\tnan\t2\tSpeech", "onset is out of range"),
        (f"{BABY}\tx\t2\tSpeech", "onset is not a number"),
        (f"{BABY}\t0\t2\tspeech", "event label is not one of the 25"),
        (f"{BABY}\t0\t2", "wrong number of fields"),
        (f'{BABY}\t0\t2\t"Speech', "a quote is left open or stands amid a field"),
    ],
)
@pytest.mark.parametrize("file", llp.FILES[1:])
def test_a_bad_event_is_counted_and_costs_no_other(folder, file, line, reason):
    before = plan(folder).entries
    number = add(folder, file, line)
    made = plan(folder)
    assert [(fault.where, fault.reason) for fault in made.skips.faults] == [
        (f"{file}:{number}", reason)
    ]
    assert made.entries == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("short_0_10\tSpeech", "filename is not <YouTube id>_<start>_<end>"),
        ("../../../../etc_0_10\tSpeech", "filename is not <YouTube id>_<start>_<end>"),
        (f"{BABY}\tSpeech", "video twice with other labels"),
    ],
)
def test_a_bad_video_is_counted(folder, line, reason):
    before = plan(folder).entries
    number = add(folder, "AVVP_test_pd.csv", line)
    made = plan(folder)
    assert [(f.where, f.reason) for f in made.skips.faults] == [
        (f"AVVP_test_pd.csv:{number}", reason)
    ]
    assert made.entries == before


def test_missing_files_are_named(folder):
    for file in llp.FILES[1:]:
        (folder / file).unlink()
    with pytest.raises(UserError, match=r"AVVP_eval_audio\.csv, AVVP_eval_visual\.csv"):
        plan(folder)


@pytest.mark.parametrize("text", ["", "a,b\n", "filename\tonset\toffset\tlabel\n"])
def test_another_file_is_refused(folder, text):
    (folder / "AVVP_eval_audio.csv").write_text(text)
    with pytest.raises(UserError, match=r"AVVP_eval_audio\.csv:1: no column"):
        plan(folder)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(llp.FILES))
def test_spoiled_bytes_cost_no_entry_but_their_own(data, name):
    mutations.check_bytes(llp, tree_llp.write, name, lambda raw: data.draw(mutations.spoiled(raw)))

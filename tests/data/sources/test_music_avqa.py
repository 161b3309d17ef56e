from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources import music_avqa
from meerkat_jax.data.sources.entry import Options, Place
from tests.data.sources import mutations, tree_music_avqa
from tests.data.sources.tree_music_avqa import row

FILES = sorted(music_avqa.FILES.values())


@pytest.fixture
def folder(tmp_path):
    tree_music_avqa.write(tmp_path)
    return tmp_path


def plan(folder, **options):
    return music_avqa.plan(folder, Options(**options))


def write_lines(folder):
    """The tree with one row on a line."""
    media = tree_music_avqa.write(folder)
    for name in FILES:
        rows = json.loads((folder / name).read_text(encoding="utf-8-sig"))
        (folder / name).write_bytes(mutations.dumped(rows))
    return media


def test_rows_make_one_entry_for_each_real_video(folder):
    made = plan(folder)
    assert [(one.id, one.split, len(one.questions)) for one in made.entries] == [
        ("music_avqa-train-00000093", "train", 2),
        ("music_avqa-train-00000153", "train", 1),
        ("music_avqa-test-00000288", "test", 1),
        ("music_avqa-test-00000301", "test", 1),
    ]
    assert not made.skips.faults
    assert dict(made.skips.dropped) == {"synthetic video": 2, "row twice": 1}
    assert made.entries == plan(folder).entries


def test_an_entry_in_full(folder):
    one = plan(folder).entries[0]
    assert one.image == (Place("frames", "00000093"), Place("videos", "00000093", 30.0))
    assert one.audio == (Place("audio", "00000093", 25.0), Place("videos", "00000093", 25.0))
    assert one.keys == ("music_avqa:00000093",)
    assert (one.image_labels, one.audio_labels, one.boxes, one.matched, one.seconds) == (
        (),
        (),
        (),
        True,
        0.0,
    )
    counting, louder = one.questions
    assert counting.task == "avqa"
    assert "How many instruments were heard?" in counting.instruction
    assert counting.response == "one"
    assert counting.truth == {"kind": "audio/counting", "answer": "one"}
    assert (
        "Is the acoustic guitar on the left louder than the piano on the right?"
        in louder.instruction
    )
    assert louder.truth == {"kind": "audio-visual/comparative", "answer": "yes"}


def test_the_sound_is_the_middle_of_the_minute(folder):
    assert plan(folder, seconds=4.0).entries[0].audio[1].at == 28.0
    assert plan(folder, seconds=90.0).entries[0].audio[1].at == 0.0


def test_blanks_are_filled_and_words_are_plain(folder):
    location, counting = (one.questions[0] for one in plan(folder).entries[2:])
    assert "What kind of instrument is the left instrument?" in location.instruction
    assert location.truth == {"kind": "visual/location", "answer": "acoustic guitar"}
    assert location.response == "acoustic guitar"
    assert "How many sounding violin in the video?" in counting.instruction
    assert counting.response == "more than ten"


BAD = [
    ({"video_id": "0000009"}, "video_id is not of eight digits"),
    ({"video_id": 93}, "video_id is not a text"),
    ({"type": '["Audio", "Temporal"]'}, "type is unknown"),
    ({"type": '["Smell", "Counting"]'}, "type is unknown"),
    ({"type": '["Audio"]'}, "type is unknown"),
    ({"type": "Audio"}, "type is not a list written as JSON"),
    ({"type": "[" * 5000}, "type is not a list written as JSON"),
    ({"type": '{"Audio": "Counting"}'}, "type is not a list written as JSON"),
    ({"type": ["Audio", "Counting"]}, "type is not a text"),
    ({"type": "[1, 2]"}, "type is not a text"),
    ({"templ_values": "[]"}, "another number of templ_values than of blanks"),
    ({"templ_values": '["a", "b"]'}, "another number of templ_values than of blanks"),
    ({"templ_values": "NaN"}, "templ_values is not a list written as JSON"),
    ({"templ_values": '["_"]'}, "templ_values is empty"),
    ({"question_content": ""}, "question_content is empty"),
    ({"anser": None}, "anser is not a text"),
    ({"anser": "_"}, "anser is empty"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_is_counted_and_costs_no_other(folder, change, reason):
    before = plan(folder).entries
    kind = ["Audio-Visual", "Existential"]
    bad = row("00000999", 7, kind, "Is the <Object> loud?", ["pipa"], "no") | change
    rows = [bad, *tree_music_avqa.TEST, [], {"video_id": "00000999"}]
    (folder / "avqa-test.json").write_bytes(mutations.dumped(rows))
    made = plan(folder)
    assert [(fault.where, fault.reason) for fault in made.skips.faults] == [
        ("avqa-test.json:2", reason),
        ("avqa-test.json:6", "row is not a JSON object"),
        ("avqa-test.json:7", "no key 'question_content'"),
    ]
    assert made.entries == before


def test_two_answers_to_a_question_are_a_fault(folder):
    again = tree_music_avqa.TRAIN[0] | {"anser": "two"}
    (folder / "avqa-train.json").write_text(json.dumps([*tree_music_avqa.TRAIN, again], indent=2))
    (fault,) = plan(folder).skips.faults
    assert fault.reason == "question twice with other answers"
    assert fault.where == "avqa-train.json:47"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"avqa-train\.json, avqa-test\.json"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"), [("", 1), ("3", 1), ("[\n{}\n\n{}]", 4), ('[{"a": NaN}]', 1)]
)
def test_another_file_is_refused(folder, text, line):
    (folder / "avqa-test.json").write_text(text)
    with pytest.raises(UserError, match=rf"avqa-test\.json:{line}: "):
        plan(folder)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_odd_values_cost_no_entry_but_their_own(data, name):
    mutations.check_rows(
        music_avqa, tree_music_avqa.write, name, lambda one: one["video_id"], data.draw
    )


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_spoiled_bytes_cost_no_entry_but_their_own(data, name):
    mutations.check_bytes(
        music_avqa, write_lines, name, lambda raw: data.draw(mutations.spoiled(raw))
    )

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources import valor
from meerkat_jax.data.sources.entry import Options, Place
from tests.data.sources import mutations, tree_valor

FILES = sorted(valor.FILES.values())


@pytest.fixture
def folder(tmp_path):
    tree_valor.write(tmp_path)
    return tmp_path


def plan(folder):
    return valor.plan(folder, Options())


def test_rows_make_one_entry_for_each_video(folder):
    made = plan(folder)
    assert [(one.id, one.split, len(one.questions)) for one in made.entries] == [
        ("valor-train--DSNfC2EJhU_20.000_30.000", "train", 1),
        ("valor-train-_mB-DrTf79o_130.000_140.000", "train", 1),
        ("valor-train-4O9rI-FpqLg_21.500_25.500", "train", 1),
        ("valor-test-HSDNx-wvj7Y_36.000_46.000", "test", 1),
    ]
    assert not made.skips.faults
    assert dict(made.skips.dropped) == {"row twice": 1}
    assert made.entries == plan(folder).entries


def test_an_entry_in_full(folder):
    one = plan(folder).entries[0]
    name = "-DSNfC2EJhU_20.000_30.000"
    assert one.image == (Place("frames", name), Place("videos", name, 5.0))
    assert one.audio == (Place("audio", name), Place("videos", name))
    assert one.keys == ("video:-DSNfC2EJhU",)
    assert (one.image_labels, one.audio_labels, one.boxes, one.matched, one.seconds) == (
        (),
        (),
        (),
        True,
        0.0,
    )
    (question,) = one.questions
    assert question.task == "avc"
    assert question.response == 'He said "go", and off they went.'
    assert question.truth == {
        "kind": "avc",
        "answer": None,
        "references": ['He said "go", and off they went.', "Somebody speaks."],
    }


def test_captions_are_plain_text(folder):
    captions = [one.questions[0].response for one in plan(folder).entries]
    assert captions[1:] == [
        "A man & a dog sang.",
        "Waves, wind / rain [loud].",
        "Ein exposé, followed by a whale\uff0cand so on.",
    ]


def test_a_short_clip_shows_its_own_middle(folder):
    assert plan(folder).entries[2].image[1] == Place("videos", tree_valor.SHORT, 2.0)


BAD = [
    ({"video_id": "Agi5ySKb1tY_23.700"}, "video_id is not <YouTube id>_<start>_<end>"),
    ({"video_id": "../../../..x_1_2"}, "video_id is not <YouTube id>_<start>_<end>"),
    ({"video_id": "Agi5ySKb1tY_30.000_20.000"}, "clip ends before it begins"),
    ({"video_id": f"Agi5ySKb1tY_1_{'9' * 400}"}, "clip end is out of range"),
    ({"video_id": None}, "video_id is not a text"),
    ({"desc": "700"}, "desc has no words"),
    ({"desc": ""}, "desc is empty"),
    ({"desc": ["A man."]}, "desc is not a text"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_is_counted_and_costs_no_other(folder, change, reason):
    before = plan(folder).entries
    bad = {"video_id": "Agi5ySKb1tY_20.000_30.000", "desc": "A man."} | change
    (folder / "desc_train.json").write_bytes(
        mutations.dumped([bad, *tree_valor.TRAIN, None, {"desc": "A"}])
    )
    made = plan(folder)
    assert [(fault.where, fault.reason) for fault in made.skips.faults] == [
        ("desc_train.json:2", reason),
        ("desc_train.json:8", "row is not a JSON object"),
        ("desc_train.json:9", "no key 'video_id'"),
    ]
    assert made.entries == before


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"desc_train\.json, desc_test\.json"):
        plan(tmp_path)


@pytest.mark.parametrize(("text", "line"), [("", 1), ("true", 1), ("[\n{},\n", 3), ('{"a" 1}', 1)])
def test_another_file_is_refused(folder, text, line):
    (folder / "desc_test.json").write_text(text)
    with pytest.raises(UserError, match=rf"desc_test\.json:{line}: "):
        plan(folder)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_odd_values_cost_no_entry_but_their_own(data, name):
    mutations.check_rows(valor, tree_valor.write, name, lambda one: one["video_id"], data.draw)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_spoiled_bytes_cost_no_entry_but_their_own(data, name):
    mutations.check_bytes(
        valor, tree_valor.write, name, lambda raw: data.draw(mutations.spoiled(raw))
    )

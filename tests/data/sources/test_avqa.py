from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources import avqa
from meerkat_jax.data.sources.entry import Options, Place
from tests.data.sources import mutations, tree_avqa
from tests.data.sources.tree_avqa import BOATS, row

FILES = sorted(avqa.FILES.values())


@pytest.fixture
def folder(tmp_path):
    tree_avqa.write(tmp_path)
    return tmp_path


def plan(folder):
    return avqa.plan(folder, Options())


def entries(folder):
    return {one.id: one for one in plan(folder).entries}


def test_rows_make_one_entry_for_each_video(folder):
    made = plan(folder)
    assert [(one.id, one.split, len(one.questions)) for one in made.entries] == [
        ("avqa-train--HG3Omg_89c_000030", "train", 2),
        ("avqa-train-_HIPq7T3eF-_000011", "train", 1),
        ("avqa-test-0012y1s1bJI_000350", "test", 1),
        ("avqa-test-001MzJlnyqc_000020", "test", 1),
    ]
    assert not made.skips.faults
    assert dict(made.skips.dropped) == {"row twice": 1}
    assert made.entries == plan(folder).entries


def test_an_entry_in_full(folder):
    one = entries(folder)["avqa-train--HG3Omg_89c_000030"]
    name = "-HG3Omg_89c_000030"
    assert one.image == (Place("frames", name), Place("videos", name, 5.0))
    assert one.audio == (Place("audio", name), Place("videos", name))
    assert one.keys == ("video:-HG3Omg_89c",)
    assert (one.image_labels, one.audio_labels, one.boxes, one.matched, one.seconds) == (
        (),
        (),
        (),
        True,
        0.0,
    )
    boats, why = one.questions
    assert boats.task == "avqa"
    assert boats.response == "Yacht consignment"
    assert "What happened in the video?" in boats.instruction
    assert ", ".join(BOATS) in boats.instruction
    assert boats.truth == {
        "kind": "happening",
        "answer": "Yacht consignment",
        "choices": BOATS,
        "relation": "both",
    }
    assert 'Why is it "loud"?' in why.instruction
    assert (why.response, why.truth["kind"]) == ("a & b", "why")


def test_the_answer_is_the_one_of_its_index(folder):
    made = entries(folder)
    (question,) = made["avqa-train-_HIPq7T3eF-_000011"].questions
    assert (question.response, question.truth["kind"]) == ("siren, horn", "come_from")
    (question,) = made["avqa-test-0012y1s1bJI_000350"].questions  # after one that is null
    assert question.truth["choices"] == ["a", "b", "c"]
    assert (question.response, question.truth["kind"]) == ("b", "before_next")
    (question,) = made["avqa-test-001MzJlnyqc_000020"].questions
    assert (question.response, question.truth["kind"]) == ("1/2", "used_for")


BAD = [
    ({"video_name": "-HG3Omg_89c"}, "video_name is not <YouTube id>_<six digits>"),
    ({"video_name": "../../../x_000030"}, "video_name is not <YouTube id>_<six digits>"),
    ({"video_name": 3}, "video_name is not a text"),
    ({"question_text": " "}, "question_text is empty"),
    ({"multi_choice": None}, "multi_choice is not a list"),
    ({"multi_choice": ["a"]}, "multi_choice has fewer than two answers"),
    ({"multi_choice": ["a", None, ""], "answer": 0}, "multi_choice has fewer than two answers"),
    ({"multi_choice": ["a", ["b"]]}, "choice is not a text"),
    ({"multi_choice": ["a", None, "b"]}, "answer is not one of the choices"),
    ({"answer": 4}, "answer is out of range"),
    ({"answer": -1}, "answer is out of range"),
    ({"answer": 1.5}, "answer is not one of the choices"),
    ({"answer": True}, "answer is not a number"),
    ({"answer": 10**400}, "answer is not a number"),
    ({"question_type": "How"}, "question_type is unknown"),
    ({"question_relation": "Smell"}, "question_relation is unknown"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_is_counted_and_costs_no_other(folder, change, reason):
    before = plan(folder).entries
    bad = row(9, "bbbbbbbbbbb_000001", "What?", BOATS, 1, "Which") | change
    (folder / "val_qa.json").write_bytes(mutations.dumped([bad, *tree_avqa.TEST, 5, {}]))
    made = plan(folder)
    assert [(fault.where, fault.reason) for fault in made.skips.faults] == [
        ("val_qa.json:2", reason),
        ("val_qa.json:5", "row is not a JSON object"),
        ("val_qa.json:6", "no key 'video_name'"),
    ]
    assert made.entries == before


def test_two_answers_to_a_question_are_a_fault(folder):
    again = tree_avqa.TEST[0] | {"answer": 3}
    (folder / "val_qa.json").write_bytes(mutations.dumped([*tree_avqa.TEST, again]))
    made = plan(folder)
    assert [f.reason for f in made.skips.faults] == ["question twice with other answers"]
    assert made.skips.faults[0].where == "val_qa.json:4"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train_qa\.json, val_qa\.json"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"), [("", 1), ("null", 1), ("[\n{},\n{x}]", 3), ("[" * 9**5, 1)]
)
def test_another_file_is_refused(folder, text, line):
    (folder / "val_qa.json").write_text(text)
    with pytest.raises(UserError, match=rf"val_qa\.json:{line}: "):
        plan(folder)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_odd_values_cost_no_entry_but_their_own(data, name):
    mutations.check_rows(avqa, tree_avqa.write, name, lambda one: one["video_name"], data.draw)


@mutations.SETTINGS
@given(st.data(), st.sampled_from(FILES))
def test_spoiled_bytes_cost_no_entry_but_their_own(data, name):
    mutations.check_bytes(
        avqa, tree_avqa.write, name, lambda raw: data.draw(mutations.spoiled(raw))
    )

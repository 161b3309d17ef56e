"""The authors' own files: each data set's order of numbers, keys, media, and bad rows."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.sources import avfit
from meerkat_jax.data.sources.avfit_answers import SETS
from meerkat_jax.data.sources.entry import Options, Place
from meerkat_jax.data.text import check_response
from meerkat_jax.data.verdict import parse_verdict
from tests.data.sources import tree_avfit
from tests.data.sources.mutations import ODD, SETTINGS, spoiled
from tests.data.sources.tree_avfit import ASK, FACT, PAIR, row

OTHER = "avsbench_ABCDEFGHIJK_0_5"


@pytest.fixture
def folder(tmp_path):
    tree_avfit.write(tmp_path)
    return tmp_path


def planned(folder):
    plan = avfit.plan(folder, Options())
    return plan, {one.id: one for one in plan.entries}


def one_set(folder, data_set: str, items: dict[str, list], kind: str = "train"):
    """The plan of a folder with one file alone."""
    path = folder / data_set / f"{data_set}_{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree_avfit.dumped(items))
    return planned(folder)


def inference(folder, **changes):
    """The plan of an inference file of avsbench with one row."""
    told = {
        "image": "None",
        "video": f"/somewhere/data/avsbench/frames/{OTHER}",
        "audio": f"/somewhere/data/avsbench/audios/{OTHER}.mp4.wav",
        "instruction": ASK,
        "response": "[<dog>,0.1,0.2,0.5,0.6]",
    } | changes
    path = folder / "avsbench/avsbench_val_inference.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"data": [told]}))
    return planned(folder)


def faults(plan):
    return [(fault.where, fault.reason) for fault in plan.skips.faults]


def test_the_whole_tree(folder):
    plan, entries = planned(folder)
    assert len(plan.files) == 15 and len(entries) == len(plan.entries) == 12
    assert faults(plan) == [
        ("avsbench_train.json:2", "box without an area"),
        ("llp_val_inference.json:10", "no image or no sound"),
    ]
    assert plan.skips.dropped == {"row twice": 1} and plan.skips.used == 20
    splits = {one.id.split("-")[1]: one.split for one in plan.entries}
    assert splits == {"train": "train", "test": "test"}
    for one in plan.entries:
        for question in one.questions:
            if question.boxes or question.segments:
                check_response(question)


@pytest.mark.parametrize(
    ("ident", "box"),
    [
        ("test-vggss__1234567890_000010", Box("cat", 0.1, 0.2, 0.3, 1.0)),  # x0 y0 x1 y1
        ("test-soundnet_4242", Box("object", 0.0, 0.06, 0.5, 0.5)),  # x0 y0 x1 y1 in pixels
        ("test-pascal_2008_000123", Box("dog", 0.0, 0.1, 0.5, 1.0)),  # x0 x1 y0 y1 in pixels
        (
            "train-000a1b2c3d4e5f60-vggsound--bcdefghij__000030",
            Box("Dog", 0.1, 0.25, 0.5, 1.0),  # x0 x1 y0 y1
        ),
        (
            "train-00000000000000ab-audioset_sreyan-ABCDEFGHIJK",
            Box("Bus/Coach", 0.0, 6e-05, 0.5, 0.75),  # the label is the key's
        ),
    ],
)
def test_each_data_set_has_its_order_of_numbers(folder, ident, box):
    entry = planned(folder)[1][f"avfit-{ident}"]
    assert entry.boxes == (box,) and entry.image_labels == entry.audio_labels == (box.label,)
    assert entry.questions[0].boxes == (box,) and entry.matched


def test_boxes_asked_for_in_the_same_words_are_one_question(folder):
    entry = planned(folder)[1]["avfit-train-avsbench_-0zyxwvut9s_5_10"]
    (question,) = entry.questions
    assert question.instruction == ASK
    assert question.response == (
        "[dog barking, 0.100, 0.000, 0.500, 1.000] [male, speech, 0.500, 0.250, 1.000, 0.500]"
    )
    assert entry.keys == ("video:-0zyxwvut9s",)
    assert entry.image[0] == Place("data/avsbench/frames", "avsbench_-0zyxwvut9s_5_10.mp4_0")
    assert entry.audio[0] == Place("data/avsbench/audios", "avsbench_-0zyxwvut9s_5_10.mp4")


def test_questions_of_several_files_about_the_same_media_are_one_entry(folder):
    entries = planned(folder)[1]
    weak = entries["avfit-train-000a1b2c3d4e5f60-audioset_sreyan--bcdefghij_"]
    assert sorted(question.task for question in weak.questions) == ["arig", "avfact1"]
    assert weak.keys == ("image:000a1b2c3d4e5f60", "video:-bcdefghij_") and weak.matched
    assert weak.image == (Place("data/openimages/frames", "000a1b2c3d4e5f60"),)
    assert weak.audio[0] == Place("data/audioset_sreyan/audios", "-bcdefghij_")
    strong = entries["avfit-train-000a1b2c3d4e5f60-audioset_temporal--bcdefghij_"]
    assert [question.task for question in strong.questions] == [
        "igatl",
        "avfact2",
        "avfact3",
        "avfact4",
    ]
    assert strong.audio[0] == Place("data/audioset_temporal/audios", "-bcdefghij_")
    times = strong.questions[0]
    assert times.segments == (Segment("Dog", 1.2, 3.4), Segment("Dog", 5.0, 6.5))
    assert times.response == "[Dog, 1.2, 3.4] [Dog, 5.0, 6.5]" and strong.seconds == 6.5


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("True", "True."),
        (False, "False."),
        ("True. A dog barks.", "A dog barks: True."),
        ("False, it isn't true that a dog barks", "it isn't true that a dog barks: False."),
        ("Yes.", "True."),
        ("no, a cat meows.", "a cat meows: False."),
        ("A dog barks, so it is true.", "A dog barks, so it is: True."),
        ("The claim is not true.", "The claim is not true: False."),
        ("That true colours are seen is false", "That true colours are seen is: False."),
    ],
)
def test_a_fact_check_gives_its_verdict_last(tmp_path, answer, response):
    fact = f"{FACT}1"
    plan, _ = one_set(tmp_path, fact, {f"{fact}_{PAIR}": [row(fact, "So?", answer)]})
    (entry,) = plan.entries
    (question,) = entry.questions
    assert question.instruction == "So?" and question.response == response
    assert question.truth["kind"] == question.task == "avfact1"
    assert question.truth["answer"] is parse_verdict(response) is entry.matched


def test_words_and_captions(folder):
    entries = planned(folder)[1]
    asked = entries["avfit-train-music_avqa_00000093"]
    assert [(q.instruction, q.response) for q in asked.questions] == [
        ("How many sound?", "two"),
        ("Is the cello heard?", "yes"),
    ]
    assert asked.questions[0].truth == {"kind": "music_avqa", "answer": "two"}
    (question,) = entries["avfit-train-avqa_-HG3Omg_89c_000030"].questions
    assert question.instruction == "What is seen & heard?"
    (caption,) = entries["avfit-train-valor_00yaCdeFgHi_10_20"].questions
    assert caption.response == "A dog barks."
    assert caption.truth["references"] == ["A dog barks.", "A dog is barking at a cat."]


@pytest.mark.parametrize(
    ("data_set", "key", "told", "reason"),
    [
        ("avsbench", OTHER, row("avsbench", ASK, "[1, 2, 3]", category="a"), "answer is no box"),
        ("avsbench", OTHER, row("avsbench", ASK, "os.getcwd()", category="a"), "answer is no box"),
        (
            "avsbench",
            OTHER,
            row("avsbench", ASK, [0, 9, 0, 9], [9], "a"),
            "dim is not [width, height]",
        ),
        ("avsbench", OTHER, row("avsbench", ASK, [0, 9, 0, 9], [0, 9], "a"), "dim is out of range"),
        ("avsbench", OTHER, row("avsbench", ASK, [0, 9, 0, 9]), "class is empty"),
        (
            "avsbench",
            OTHER,
            row("avsbench", ASK, [0, 9, 0, 9], category="a, 0.5"),
            "label cannot be written in an answer",
        ),
        (
            "avsbench",
            OTHER,
            row("avsbench", ASK, [0, 700, 0, 9], category="a"),
            "box outside the image",
        ),
        (
            "avsbench",
            OTHER,
            row("avs", ASK, "[0, 1, 0, 1]", category="a"),
            "order of a box's numbers is not known",
        ),
        ("avsbench", OTHER, {"question": ASK}, "no key 'answer'"),
        ("avsbench", OTHER, None, "row is not a JSON object"),
        ("avsbench", "avsbench_", row("avsbench", ASK, [0, 9, 0, 9]), "id of a video is empty"),
        ("avsbench", "avsbench_../x", row("", ASK, ""), "id of a video is no name of a file"),
        ("avsbench", "something_else", row("", ASK, ""), "key of an unknown form"),
        ("openimages", "openimages_00ab#Dog", row("", ASK, ""), "key of an unknown form"),
        ("llp", "llp_1_0_10", row("llp", ASK, "at times"), "no time in the answer"),
        ("llp", "llp_1_0_10", row("llp", ASK, "[a, 4, 4]"), "time ends before it begins"),
        ("llp", "llp_1_0_10", row("llp", ASK, "[a, 4.0, 1.5]"), "time ends before it begins"),
        (
            "llp",
            "llp_1_0_10",
            row("llp", ASK, "[a, 4.01, 4.02]"),
            "nothing is left of it in tenths of a second",
        ),
        (
            "avsbench",
            OTHER,
            row("avsbench", ASK, [64, 0, 0, 48], category="a"),
            "corners out of order",
        ),
        ("avqa", "avqa_1", row("avqa", "", "a dog"), "question is empty"),
        ("avqa", "avqa_1", row("avqa", ["x"], "a dog"), "question is not a text"),
        ("avqa", "avqa_1", row("avqa", "\ud800", "a dog"), "question has half a character"),
        ("valor", "valor_1", row("valor", "", " "), "answer is empty"),
        (
            f"{FACT}1",
            f"{FACT}1_{PAIR}",
            row("", "So?", "perhaps"),
            "answer is neither True nor False",
        ),
    ],
)
def test_a_bad_row_is_told_and_costs_no_good_one(tmp_path, data_set, key, told, reason):
    good = {OTHER.replace("A", "Z"): [row("avsbench", ASK, [0, 64, 0, 48], category="dog")]}
    plan, _ = one_set(tmp_path, data_set, {key: [told]} | good)
    assert faults(plan) == [(f"{data_set}_train.json:2", reason)]
    (entry,) = plan.entries
    assert entry.boxes == (Box("dog", 0.0, 0.0, 0.1, 0.1),)


def test_a_missing_question_gets_one_of_ours(tmp_path):
    plan, _ = one_set(
        tmp_path, "avsbench", {OTHER: [row("avsbench", None, [0, 64, 0, 48], category="dog")]}
    )
    (question,) = plan.entries[0].questions
    assert question.instruction.endswith("Give [object, x_left, y_top, x_right, y_bottom].")


def test_an_inference_row_is_in_the_form_that_the_loader_writes(tmp_path):
    plan, entries = inference(tmp_path)
    entry = entries["avfit-test-avsbench_ABCDEFGHIJK_0_5"]
    assert entry.boxes == (Box("dog", 0.1, 0.2, 0.5, 0.6),) and not plan.skips.faults
    assert entry.image[0] == Place("avsbench/frames", f"{OTHER}.mp4_0")
    assert entry.keys == ("video:ABCDEFGHIJK",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"response": "[0.1, 0.2, 0.5, 0.6]"}, "class is empty"),
        ({"response": "[<>,0.1,0.2,0.5,0.6]"}, "class is empty"),
        ({"audio": "None"}, "no image or no sound"),
        ({"audio": "x.wav"}, "path is not <data set>/<folder>/<name>"),
        ({"audio": "data/avqa/audios/x.mp4.wav"}, "image and audio do not belong together"),
        ({"video": 3}, "video is not a text"),
        ({"instruction": []}, "question is not a text"),
    ],
)
def test_a_bad_inference_row_is_told(tmp_path, changes, reason):
    plan, entries = inference(tmp_path, **changes)
    assert faults(plan) == [("avsbench_val_inference.json:1", reason)] and not entries


def test_an_inference_row_of_a_pair(tmp_path):
    path = tmp_path / f"{FACT}1/{FACT}1_test_inference.json"
    path.parent.mkdir()
    told = {
        "image": "data/openimages/frames/000a1b2c3d4e5f60.jpg",
        "video": "None",
        "audio": "data/audioset_sreyan/audios/-bcdefghij_.wav",
        "instruction": "So?",
        "response": "False",
    }
    path.write_text(json.dumps({"data": [told]}))
    (entry,) = planned(tmp_path)[0].entries
    assert entry.id == "avfit-test-000a1b2c3d4e5f60-audioset_sreyan--bcdefghij_"
    assert entry.image == (Place("openimages/frames", "000a1b2c3d4e5f60"),) and not entry.matched


def test_a_split_is_read_from_the_best_file(tmp_path):
    answers = {"test": "a", "val": "b"}
    for kind, answer in answers.items():
        plan, _ = one_set(tmp_path, "avqa", {"avqa_1": [row("avqa", "So?", answer)]}, kind)
    (entry,) = plan.entries
    assert entry.split == "test" and entry.questions[0].response == "a"
    assert plan.skips.dropped == {"file beside a better one of its split": 1}


def test_more_than_sixteen_boxes_are_too_many(tmp_path):
    rows = [row("avsbench", ASK, [0, 64 + i, 0, 48], category="dog") for i in range(17)]
    few = {OTHER.replace("A", "Z"): [rows[0]] * 20}
    plan, entries = one_set(tmp_path, "avsbench", {OTHER: rows} | few)
    assert faults(plan) == [("avfit-train-avsbench_ABCDEFGHIJK_0_5", "more than 16 boxes")]
    assert [len(one.boxes) for one in plan.entries] == [1]


def test_an_unknown_data_set_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"ytbb_train.json: data set 'ytbb' is not known"):
        one_set(tmp_path, "ytbb", {})


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="_train.json or _test.json"):
        planned(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        planned(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", 1),
        (b"null", 1),
        (b'{"a": {}}\n}', 1),
        (b'{\n"a": {}\n"b": {}}', 3),
        (b'{"a": {},\n', 2),
        (b"{\n1: {}}", 2),
        (b'{"a": {},\n"b": NaN}', 2),
        (b'{"a":\n"\xff"}', 2),
        (b'{"a":\n' + b"[" * 9000, 2),
        (b'{"a":\n' + b"9" * 9000 + b"}", 2),
    ],
)
def test_broken_json_is_refused_by_file_and_line(tmp_path, text, line):
    path = tmp_path / "avqa/avqa_train.json"
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(UserError, match=f"avqa_train.json:{line}: "):
        planned(tmp_path)


def test_entries_are_flat_pickle_and_notice_a_changed_file(folder):
    plan, entries = planned(folder)
    again = pickle.loads(pickle.dumps(plan.entries))
    assert list(again) == list(plan.entries) == list(planned(folder)[0].entries)
    with pytest.raises(IndexError):
        plan.entries[len(plan.entries)]
    path = folder / "data/avqa/avqa_train.json"
    path.write_bytes(b" " * path.stat().st_size)
    with pytest.raises(UserError, match="changed since it was planned"):
        list(plan.entries)


# Files that are spoiled --------------------------------------------------------------------------

NAMES = sorted([*tree_avfit.TREE, "llp/llp_val_inference.json"])


def check(folder, name: str, before: dict, of_file: set[str]) -> dict | None:
    """Plan a tree of which one file was spoiled: the entries of others have to come out."""
    try:
        plan = avfit.plan(folder, Options())
        found = {one.id: one for one in plan.entries}
    except UserError as error:
        assert re.search(rf"{re.escape(name.split('/')[1])}:\d+: ", str(error)), error
        return None
    for fault in plan.skips.faults:
        assert re.fullmatch(r"\w+\.json:\d+|avfit-.*", fault.where)
    for ident in set(before) - of_file:
        assert found[ident] == before[ident]
    return found


def of_one_file(plan) -> dict[str, set[str]]:
    """The ids of entries with a row in each file."""
    entries, ids = plan.entries, {}
    for index, (begin, end) in enumerate(zip(entries.begins, entries.begins[1:], strict=False)):
        for one in entries.order[begin:end]:
            path = entries.files[entries.byte_spans.files[one]].path
            ids.setdefault(f"{path.parent.name}/{path.name}", set()).add(entries[index].id)
    return ids


@SETTINGS
@given(st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("avfit")
    tree_avfit.write(folder)
    plan, before = planned(folder)
    name = data.draw(st.sampled_from(NAMES))
    path = folder / "data" / name
    spoilt = of_one_file(plan)[name]
    path.write_bytes(data.draw(spoiled(path.read_bytes())))
    check(folder, name, before, spoilt)


@SETTINGS
@given(st.data())
def test_odd_values_cost_their_rows_alone(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("avfit")
    tree_avfit.write(folder)
    plan, before = planned(folder)
    name = data.draw(st.sampled_from(NAMES))
    spoilt = of_one_file(plan)[name]
    path = folder / "data" / name
    value = json.loads(path.read_bytes().decode("utf-8-sig"))
    place = value
    for _ in range(data.draw(st.integers(1, 4))):  # go down to what is to be replaced
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        at = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[at], dict | list) or not place[at]:
            break
        last, place = place, place[at]
    else:
        place = last
    place[at] = data.draw(st.sampled_from(ODD))
    path.write_text(json.dumps(value))
    whole = name.endswith("inference.json") and value["data"] in ODD
    assert check(folder, name, before, spoilt) is not None or whole


def test_every_data_set_of_the_table_is_in_the_tree():
    assert {name.split("/")[0] for name in NAMES} == set(SETS)

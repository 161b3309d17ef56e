"""A user's own rows: what is made of them, what is wrong with them, and that they stay on disk."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import TASKS, Box, Segment
from meerkat_jax.data.sources import jsonl, schema
from meerkat_jax.data.sources.entry import Options, Place
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.text import check_response
from meerkat_jax.data.verdict import parse_verdict
from tests.data.sources import tree_jsonl
from tests.data.sources.mutations import ODD, SETTINGS, spoiled
from tests.data.sources.tree_jsonl import DOG, FULL, LEAST, PLAIN

BOX = Box("dog", 0.1, 0.25, 0.5, 1.0)


def planned(folder, *rows):
    """The plan of a file with these lines: texts as they are, others as JSON."""
    if rows:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / "annotations.jsonl").write_text("\n".join(lines))
    return jsonl.plan(folder, Options())


def asked(**question):
    """The least row with one question."""
    return {**LEAST, "questions": [question]}


def arig(**more):
    return asked(task="arig", **{"boxes": [DOG], **more})


def test_the_tree(tmp_path):
    tree_jsonl.write(tmp_path)
    plan = planned(tmp_path)
    assert not plan.skips.faults and plan.skips.dropped == {"row twice": 1}
    assert plan.files == (tmp_path / "annotations.jsonl",)
    least, full, plain = plan.entries
    assert least.id == "jsonl-train-line1" and least.split == "train" and least.matched
    assert least.image == (Place("dogs", "1", 0, ".jpg"),)
    assert least.audio == (Place("dogs", "1", 0, ".wav"),)
    assert least.keys == ("jsonl:dogs/1.jpg", "jsonl:dogs/1.wav") and least.boxes == (BOX,)
    (question,) = least.questions
    assert question.boxes == (BOX,) and question.response == "[dog, 0.100, 0.250, 0.500, 1.000]"
    assert question.truth == {"kind": "arig", "answer": None, "objects": [DOG]}
    assert question.instruction.endswith("Give [object, x_left, y_top, x_right, y_bottom].")
    assert full.id == "jsonl-test--film a/12" and full.split == "test" and not full.matched
    assert full.image == (Place("films", "-a b.x", 2.5, ".mp4"),)
    assert full.audio == (Place("films", "-a b.x", 1.0, ".mp4"),)
    assert full.keys == ("jsonl:films/-a b.x.mp4", "jsonl:group:film a")
    assert (
        full.image_labels == ("dog", "cat, black")
        and full.audio_labels == ("dog",)
        and full.seconds == 5.0
    )
    assert full.boxes == (Box("cat, black", 0.1, 0.0, 1.0, 1.0),)
    assert plain.id == "jsonl-train-line4" and plain.image == (Place("", "2", 0, ".png"),)


def test_every_default_of_a_question(tmp_path):
    questions = planned(tmp_path, FULL).entries[0].questions
    one, times, first, second, third, fourth, own, count, yes, said, caption, last = questions
    assert one.boxes == (Box('say "a/b"', 0.1, 0.1, 0.5, 1.0),)
    assert times.response == "[dog, 0.5, 2.0] [dog, 3.0, 4.2]"
    assert times.segments == (Segment("dog", 0.5, 2.0), Segment("dog", 3.0, 4.25))
    assert times.truth["sounds"] == [["dog", 0.5, 2.0], ["dog", 3.0, 4.25]]
    assert first.response == "True." and "[0.100, 0.250, 0.500, 1.000]" in first.instruction
    assert first.truth == {"kind": "avfact1", "answer": True, "objects": [DOG]}
    assert second.response == "I hear nothing: False." and second.truth["answer"] is False
    assert third.truth["interval"] == [4.0, 5.0] and third.response == "False."
    assert "4.0" in fourth.instruction and "[" not in fourth.instruction
    assert own.instruction == "Dogs?\nTrue or False?"
    assert count.response == "1" and count.truth == {"kind": "avqa", "answer": "1"}
    assert yes.response == "Yes, it is." and yes.truth["answer"] == "yes"
    assert said.response == said.truth["answer"] == "a dog"
    assert caption.response == "A dog barks at a cat." and len(caption.truth["references"]) == 2
    assert last.instruction == "Caption?" and last.truth["references"] == ["A dog é."]


GOOD = [
    LEAST,
    FULL,
    PLAIN,
    arig(instruction="Where?", response="It is [dog, 0.100, 0.250, 0.500, 1.000]"),
    arig(boxes=[["a", 0, 0, 1, 1]] * 16),
    arig() | {"boxes": [], "matched": True, "image_labels": [], "image": "a/.b/c d.e.JPG"},
    asked(task="avqa", instruction="So?", answer=0.5),
    asked(task="avqa", instruction="So?", answer=10**30),
    asked(task="avfact1", instruction="So?", answer=False),
]
# A row, the reason told, and what else the message has to say.
BAD = [
    ([], "expected an object", "the row is []"),
    (LEAST | {"image": 3}, "image: expected a text", "image is 3"),
    (LEAST | {"img": "a"}, "unknown key", "has 'img'; did you mean 'image'?"),
    (LEAST | {"questions": []}, "questions: expected a list of questions", "is []"),
    ({"image": "a.jpg", "questions": PLAIN["questions"]}, "expected key 'audio'", "has image"),
    (LEAST | {"split": "val"}, "split: expected 'train', 'test'", "split is 'val'"),
    (LEAST | {"image_at": -1}, "image_at: expected seconds, 0 to 86400", "-1"),
    (LEAST | {"image_at": True}, "image_at: expected a number", "True"),
    (LEAST | {"matched": 1}, "matched: expected true or false", "1"),
    (LEAST | {"id": " "}, "id: expected a text that is not blank", "' '"),
    (LEAST | {"pixels": True}, "expected key 'size'", "has image"),
    (LEAST | {"size": [1, 1]}, "expected key 'pixels'", "has image"),
    (LEAST | {"image_labels": ["[dog]"]}, "image_labels: expected a label", "image_labels[0] is"),
    (arig(boxes=[]), "questions.boxes: expected at least one box", "questions[0].boxes is []"),
    (arig(boxes=[DOG] * 17), "questions.boxes: expected a list of at most 16 boxes", ""),
    (arig(boxes=[DOG[:4]]), "questions.boxes: expected [label, x0, y0, x1, y1]", "boxes[0] is"),
    (arig(boxes=[DOG, [" a", 0, 0, 1, 1]]), "questions.boxes: expected a label", "boxes[1][0]"),
    (arig(boxes=[["a", 0, "x", 1, 1]]), "questions.boxes: expected a number", "[0][2] is 'x'"),
    (arig(pixels=True, size=[0, 5]), "questions.size: expected pixels", "size[0] is 0"),
    (arig(pixels=False, size=[5, 5]), "questions.pixels: expected True", "pixels is False"),
    (asked(task="arig"), "questions: expected key 'boxes'", "has task"),
    (asked(task="find"), "questions.task: expected 'arig', 'igatl'", "task is 'find'"),
    (asked(task="igatl", segments=[]), "questions.segments: expected at least one segment", "[]"),
    (asked(task="igatl", segments=[["a", 1]]), "questions.segments: expected [label, start", ""),
    (asked(task="avfact2"), "questions: expected key 'answer'", "questions[0] has task"),
    (asked(task="avfact2", answer="no"), "questions.answer: expected true or false", "'no'"),
    (asked(task="avfact1", answer=True), "questions: expected key 'instruction' or 'boxes'", ""),
    (asked(task="avfact4", answer=True), "questions: expected key 'instruction' or 'segm", ""),
    (asked(task="avfact1", answer=True, boxes=[DOG] * 2), "questions.boxes: expected one box", ""),
    (asked(task="avqa", answer="a"), "questions: expected key 'instruction'", "answer"),
    (asked(task="avqa", instruction="So?"), "questions: expected key 'answer' or 'response'", ""),
    (asked(task="avqa", instruction="So?", answer=""), "questions.answer: expected an answer", ""),
    (asked(task="avc"), "questions: expected key 'captions' or 'response'", "has task"),
    (asked(task="avc", captions=[]), "questions.captions: expected a list of captions", "is []"),
    *(
        (LEAST | {"audio": path}, "audio: expected a file with its suffix", "audio is")
        for path in ("/a.wav", "../a.wav", "a/../b.wav", "./a.wav", "a//b.wav", "a", "a.", ".wav")
    ),
    *(
        (LEAST | {"audio": path}, "audio: expected a file with its suffix", "audio is")
        for path in ("C:/a.wav", "a\\b.wav", "a.wav\n", "a\0.wav", "a/", "a/.wav", "")
    ),
]  # fmt: skip
# Rows that are as the schema says and wrong all the same.
WORSE = [
    (arig(boxes=[["a", 0.5, 0, 0.5, 1]]), "box without an area", "questions[0].boxes[0]: "),
    (arig(boxes=[["a", 0, 0, 2, 1]]), "box outside the image", "questions[0].boxes[0]: "),
    (arig(boxes=[["a, 0.5", 0, 0, 1, 1]]), "label cannot be written in an answer", "a, 0.5"),
    (LEAST | {"boxes": [["a", 0, 0, 2, 1]]}, "box outside the image", "boxes[0]: "),
    (
        arig(boxes=[["a", 0, 0, 9, 9]], pixels=True, size=[9, 8]),
        "box outside the image",
        "9 x 8",
    ),
    (
        asked(task="igatl", segments=[["a", 2, 2]]),
        "time ends before it begins",
        "questions[0].segments[0]: 2 to 2",
    ),
    (
        arig(response="[dog, 0.100, 0.250, 0.500, 0.900]"),
        "response says other than what is beside it",
        "expected one that reads back as [dog, 0.100, 0.250, 0.500, 1.000]",
    ),
    (
        asked(task="avfact2", answer=True, response="It is false"),
        "response says other than what is beside it",
        "expected one with True as its last verdict",
    ),
    (LEAST | {"group": "\ud800"}, "half a character", "ud800"),
    (
        LEAST | {"questions": [arig(boxes=[["a", 0, 0, 1, y / 99] for y in range(x, x + 9)])
                               ["questions"][0] for x in (1, 20)]},
        "more than 16 boxes",
        "18",
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", GOOD)
def test_good_rows_are_good_for_parser_and_schema(tmp_path, row):
    schema.check(row, jsonl.SCHEMA)
    plan = planned(tmp_path, row)
    assert not plan.skips.faults and len(plan.entries) == plan.skips.used == 1


@pytest.mark.parametrize(("row", "reason", "detail"), BAD)
def test_bad_rows_are_bad_for_parser_and_schema(tmp_path, row, reason, detail):
    with pytest.raises(RowError):
        schema.check(row, jsonl.SCHEMA)
    refused(tmp_path, row, reason, detail)


@pytest.mark.parametrize(("row", "reason", "detail"), WORSE)
def test_rows_may_be_wrong_beyond_the_schema(tmp_path, row, reason, detail):
    schema.check(row, jsonl.SCHEMA)
    refused(tmp_path, row, reason, detail)


def refused(folder, row, reason, detail):
    """A bad line between good ones: told with its number, and alone in being left out."""
    plan = planned(folder, PLAIN, row, LEAST)
    (fault,) = plan.skips.faults
    assert fault.where == "annotations.jsonl:2" and fault.reason.startswith(reason)
    assert detail in fault.detail and not re.search(r"\[\d", fault.reason)
    assert [one.id for one in plan.entries] == ["jsonl-train-line1", "jsonl-train-line3"]


def test_the_schema_knows_every_task():
    question = jsonl.SCHEMA.schema["$defs"]["question"]
    assert tuple(question["properties"]["task"]["enum"]) == TASKS


def test_every_task_can_go_without_instruction_or_response_where_the_schema_says_so():
    given_ = {"boxes": [DOG], "segments": [["dog", 1, 2]], "captions": ["A dog."], "answer": True}
    for task, keys in itertools.product(TASKS, itertools.chain.from_iterable(
        itertools.combinations([*given_, "instruction", "response"], n) for n in range(7)
    )):  # fmt: skip
        response = {
            "arig": "[dog, 0.100, 0.250, 0.500, 1.000]",
            "igatl": "[dog, 1.0, 2.0]",
        }.get(task, "Yes: True.")
        values = given_ | {"instruction": "So? True or False?", "response": response}
        row = asked(task=task, **{key: values[key] for key in keys})
        if not jsonl.SCHEMA.is_valid(row):
            with pytest.raises(RowError):
                jsonl.entry(row, 1, Options())
            continue
        for one in jsonl.entry(row, 1, Options()).questions:
            assert one.instruction and one.response
            if task in ("arig", "igatl"):
                check_response(one)
            elif task.startswith("avfact"):
                assert parse_verdict(one.response) is one.truth["answer"]


def test_ids_come_once(tmp_path):
    rows = [LEAST | {"id": "a"}, PLAIN | {"id": "a"}, PLAIN | {"id": "a", "split": "test"}]
    plan = planned(tmp_path, *rows, LEAST | {"id": "a"}, PLAIN | {"id": "line6"}, PLAIN)
    assert [(fault.where, fault.reason) for fault in plan.skips.faults] == [
        ("annotations.jsonl:2", "id twice"),
        ("annotations.jsonl:6", "id twice"),
    ]
    assert plan.skips.dropped == {"row twice": 1}
    assert [one.id for one in plan.entries] == [
        "jsonl-train-a",
        "jsonl-test-a",
        "jsonl-train-line6",
    ]


@pytest.mark.parametrize("line", ["{", "[" * 5000, '{"a": NaN}', "9" * 5000, "x", '"'])
def test_a_line_that_is_no_json_costs_itself_alone(tmp_path, line):
    plan = planned(tmp_path, LEAST, line, PLAIN)
    assert [(one.where, one.reason) for one in plan.skips.faults] == [
        ("annotations.jsonl:2", "not JSON")
    ]
    assert len(plan.entries) == 2


def test_whole_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no annotations.jsonl"):
        planned(tmp_path)
    (tmp_path / "annotations.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(UserError, match="annotations.jsonl:2: not UTF-8"):
        planned(tmp_path)
    (tmp_path / "annotations.jsonl").write_bytes(b"")
    assert len(planned(tmp_path).entries) == 0


def test_draws_depend_on_the_id_and_the_seed_alone(tmp_path):
    row = LEAST | {"id": "a"}
    before = planned(tmp_path, row).entries[0]
    assert planned(tmp_path, PLAIN, "", row).entries[1] == before
    seeds = [jsonl.plan(tmp_path, Options(seed)).entries[1].questions[0] for seed in range(9)]
    assert len({question.instruction for question in seeds}) > 1


def test_planned_rows_take_little_memory(tmp_path):
    with open(tmp_path / "annotations.jsonl", "w") as file:
        for number in range(1000):
            file.write(json.dumps(LEAST | {"id": f"row {number}"}) + "\n")
    planned(tmp_path)  # what is read once, patterns and wordings, is not of the rows
    tracemalloc.start()
    plan = planned(tmp_path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(plan.entries) == 1000 and held < 1000 * 100
    assert plan.entries[999].id == "jsonl-train-row 999"
    assert pickle.loads(pickle.dumps(plan.entries))[7] == plan.entries[7]
    with pytest.raises(IndexError):
        plan.entries[1000]


def test_a_changed_file_is_noticed(tmp_path):
    plan = planned(tmp_path, LEAST, PLAIN)
    (tmp_path / "annotations.jsonl").write_text(json.dumps([1] * 200))
    with pytest.raises(UserError, match="changed since it was planned"):
        list(plan.entries)


# Files that are spoiled --------------------------------------------------------------------------


def check_lines(folder, after: bytes, before: dict[bytes, object]) -> None:
    """Plan spoiled bytes: lines that stand as they were come out as they did, by their ids."""
    (folder / "annotations.jsonl").write_bytes(after)
    try:
        plan = planned(folder)
        found = {one.id: one for one in plan.entries}
    except UserError as error:
        assert re.search(r"annotations\.jsonl:\d+: ", str(error)), error
        return
    for fault in plan.skips.faults:
        assert re.fullmatch(r"annotations\.jsonl:\d+", fault.where)
    twice = {fault.where for fault in plan.skips.faults if fault.reason == "id twice"}
    lines = [line.rstrip(b"\r") for line in after.split(b"\n")]
    for line, one in before.items():
        if line in lines and not twice:
            assert found.get(one.id) == one


def rows_by_line(folder) -> tuple[bytes, dict[bytes, object]]:
    rows = [row | {"id": f"row {n}"} for n, row in enumerate([LEAST, FULL, PLAIN, LEAST, FULL])]
    entries = planned(folder, *rows).entries
    data = (folder / "annotations.jsonl").read_bytes()
    return data, dict(zip(data.split(b"\n"), entries, strict=True))


@SETTINGS
@given(st.data())
def test_any_bytes_cost_their_lines_alone(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("jsonl")
    lines, before = rows_by_line(folder)
    check_lines(folder, data.draw(spoiled(lines)), before)


@SETTINGS
@given(st.data())
def test_odd_values_cost_their_rows_alone(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("jsonl")
    lines, before = rows_by_line(folder)
    lines = lines.split(b"\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    row = copy.deepcopy(json.loads(lines[at]))
    place = row
    while True:  # go down to what is to be replaced
        key = data.draw(st.sampled_from([*place] if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(ODD))
    lines[at] = json.dumps(row).encode()
    check_lines(folder, b"\n".join(lines), before)

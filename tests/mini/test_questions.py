"""Questions about scenes: true to the scene, balanced, and answered in a form that reads back.

Scenes are planned without being rendered. What is true is computed anew here, from the boxes and
segments of the plan and the words of the instruction, not from what the asker says it meant.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from meerkat_jax.data.example import TASKS, Box
from meerkat_jax.data.text import check_response, parse_boxes, parse_segments
from meerkat_jax.data.verdict import parse_verdict
from meerkat_jax.mini import compose
from meerkat_jax.mini.questions import ask
from meerkat_jax.mini.templates import NUMBER_WORDS

SCENES = 2500
CLASSES = tuple(f"thing{'abcdefghijklmnopqrstuvwxyz'[i]}" for i in range(20))
ASPECT = {name: ratio for name, ratio in zip(CLASSES, np.linspace(0.5, 2, 20), strict=True)}
NUMBER = r"\d+\.\d+"
AVQA = {"which", "count", "where", "exists", "first", "heard_and_seen"}


def scene(index: int, split: str):
    """A plan and its questions; boxes to three decimals, as rendering gives them."""
    rng = compose.scene_generator(3, split, index)
    plan = compose.plan_scene(rng, CLASSES, ASPECT, split)
    boxes = tuple(
        Box(b.label, *(round(v, 3) for v in (b.x0, b.y0, b.x1, b.y1))) for b in plan.objects
    )
    return plan, ask(rng, plan, boxes, CLASSES, split)


@pytest.fixture(scope="module", params=["train", "compositions"])
def asked(request):
    """All (plan, question) pairs of many scenes of one split."""
    scenes = [scene(index, request.param) for index in range(SCENES)]
    return [(plan, question) for plan, questions in scenes for question in questions]


def of(asked, kind):
    pairs = [(plan, question) for plan, question in asked if question.truth["kind"] == kind]
    assert len(pairs) > 200, f"only {len(pairs)} questions of kind {kind}"
    return pairs


# ---- what is asked ----


def test_every_task_and_kind_is_asked(asked):
    assert {question.task for _, question in asked} == set(TASKS)
    assert {q.truth["kind"] for _, q in asked if q.task == "avqa"} == AVQA


def test_every_scene_allows_as_many_questions_as_a_batch_takes():
    least = min(len(scene(index, "train")[1]) for index in range(300))
    assert least >= 3


def test_every_response_reads_back(asked):
    for _, question in asked:
        check_response(question)


@pytest.mark.parametrize(
    "kind", ["avfact1", "avfact2", "avfact3", "avfact4", "exists", "heard_and_seen"]
)
def test_verdicts_are_balanced(asked, kind):
    answers = [question.truth["answer"] for _, question in of(asked, kind)]
    assert np.mean(answers) == pytest.approx(0.5, abs=0.05)  # of which 0.012 is the draw


@pytest.mark.parametrize("kind", ["avfact1", "avfact2", "avfact3", "avfact4", "heard_and_seen"])
def test_the_number_of_objects_says_little_about_the_verdict(asked, kind):
    """A rule that only counts objects must stay a poor one."""
    by_number = Counter()
    for plan, question in of(asked, kind):
        by_number[len(plan.image_labels), question.truth["answer"]] += 1
    right = sum(max(by_number[n, True], by_number[n, False]) for n in (1, 2, 3))
    assert right / sum(by_number.values()) < 0.72


# ---- the answers are true ----


def box_in(text: str) -> tuple[float, ...]:
    (found,) = re.findall(rf"\[({NUMBER}), ({NUMBER}), ({NUMBER}), ({NUMBER})\]", text)
    return tuple(map(float, found))


def times_in(text: str) -> tuple[float, float]:
    found = re.findall(rf"(?:between|from) ({NUMBER}) (?:and|to) ({NUMBER})", text, re.IGNORECASE)
    (interval,) = found
    return float(interval[0]), float(interval[1])


def name_in_box(plan, corners) -> str:
    """The object whose corners these are; there must be exactly one."""
    names = [
        box.label
        for box in plan.objects
        if np.allclose((box.x0, box.y0, box.x1, box.y1), corners, atol=6e-4)
    ]
    (name,) = names
    return name


def sounding_in(plan, interval) -> set[str]:
    start, end = interval
    return {s.label for s in plan.sounds if min(end, s.end) - max(start, s.start) > 0}


def fact(plan, question) -> bool:
    """The truth of a fact check, from its words and the plan alone."""
    text, seen, heard = question.instruction, set(plan.image_labels), set(plan.audio_labels)
    match question.truth["kind"]:
        case "avfact1":
            return name_in_box(plan, box_in(text)) in heard
        case "avfact2":
            return bool(seen & heard)
        case "avfact3":
            return name_in_box(plan, box_in(text)) in sounding_in(plan, times_in(text))
        case "avfact4":
            return bool(seen & sounding_in(plan, times_in(text)))


@pytest.mark.parametrize("kind", ["avfact1", "avfact2", "avfact3", "avfact4"])
def test_fact_checks_are_true_to_the_scene(asked, kind):
    for plan, question in of(asked, kind):
        assert question.truth["answer"] == fact(plan, question), (question, plan)
        assert parse_verdict(question.response) == question.truth["answer"]
        assert question.response.endswith((": True.", ": False."))


def third(place: str, first: str, last: str) -> int:
    """Which third of the picture the words of a place name, along one axis."""
    return 0 if first in place else 2 if last in place else 1


def test_what_is_seen_is_told_from_left_to_right_and_at_its_place(asked):
    for plan, question in of(asked, "avc"):
        told = re.findall(r", (?:at|on|in) the ([a-z ]+?) a (\w+)", question.response)
        assert sorted(name for _, name in told) == list(plan.image_labels)
        for place, name in told:
            (box,) = (box for box in plan.objects if box.label == name)
            x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            column, row = third(place, "left", "right"), third(place, "top", "bottom")
            assert x * 3 == pytest.approx(column + 0.5, abs=0.502)  # boxes are rounded
            assert y * 3 == pytest.approx(row + 0.5, abs=0.502)
        columns = [third(place, "left", "right") for place, _ in told]
        assert columns == sorted(columns)


def test_what_is_heard_is_told_as_it_begins(asked):
    for plan, question in of(asked, "avc"):
        heard = re.findall(r" a (\w+)", question.response.partition("I hear")[2])
        starts = [s.start for name in heard for s in plan.sounds if s.label == name]
        assert len(starts) == len(plan.sounds) and starts == sorted(starts)


@pytest.mark.parametrize("kind", ["avfact3", "avfact4"])
def test_intervals_are_beyond_doubt(asked, kind):
    """Each sound clearly is, or clearly is not, in the interval that is asked about."""
    for plan, question in of(asked, kind):
        start, end = times_in(question.instruction)
        assert 0 <= start < end <= compose.CLIP_SECONDS
        for sound in plan.sounds:
            shared = min(end, sound.end) - max(start, sound.start)
            assert shared >= 0.6 - 1e-6 or shared <= -0.3 + 1e-6


@pytest.mark.parametrize("kind", ["avfact3", "avfact4"])
def test_evidence_about_a_time_is_true(asked, kind):
    """Of each sound: whether it comes from what is asked about, and whether at that time."""
    said = re.compile(r" a (\w+) (from the box|from elsewhere|in sight|out of sight) (\w+ \w+)")
    for plan, question in of(asked, kind):
        start, end = times_in(question.instruction)
        near = set(plan.image_labels)
        if kind == "avfact3":
            near = {name_in_box(plan, box_in(question.instruction))}
        told = said.findall(question.response)
        assert sorted(name for name, _, _ in told) == sorted(plan.audio_labels)
        for name, source, time in told:
            (sound,) = (s for s in plan.sounds if s.label == name)
            assert (source in ("from the box", "in sight")) == (name in near)
            assert (time == "too early") == (sound.end <= start)
            assert (time == "too late") == (sound.start >= end)


@pytest.mark.parametrize("kind", ["avfact3", "avfact4"])
def test_hearing_that_anything_sounds_is_not_enough(asked, kind):
    right = []
    for plan, question in of(asked, kind):
        assert tuple(question.truth["interval"]) == times_in(question.instruction)
        anything = bool(sounding_in(plan, times_in(question.instruction)))
        right.append(anything == question.truth["answer"])
    assert np.mean(right) < 0.7


@pytest.mark.parametrize("kind", ["avfact1", "avfact3"])
def test_a_box_in_a_question_does_not_name_what_it_holds(asked, kind):
    for plan, question in of(asked, kind):
        assert not any(name in question.instruction for name in plan.image_labels)


def test_grounding_in_space(asked):
    for plan, question in of(asked, "arig"):
        wanted = set(plan.image_labels) & set(plan.audio_labels)
        assert {box.label for box in parse_boxes(question.response).items} == wanted
        for box in question.boxes:
            assert name_in_box(plan, (box.x0, box.y0, box.x1, box.y1)) == box.label


def test_grounding_in_time(asked):
    for plan, question in of(asked, "igatl"):
        times = {s.label: (s.start, s.end) for s in plan.sounds if s.label in plan.image_labels}
        answered = parse_segments(question.response, compose.CLIP_SECONDS).items
        assert {s.label: (s.start, s.end) for s in answered} == times


def test_which_and_where(asked):
    for plan, question in of(asked, "which"):
        assert {question.truth["answer"]} == set(plan.image_labels) & set(plan.audio_labels)
        assert f" {question.truth['answer']} " in question.response
    sides = Counter()
    for plan, question in of(asked, "where"):
        (name,) = set(plan.image_labels) & set(plan.audio_labels)
        (box,) = [box for box in plan.objects if box.label == name]
        third = 3 * (box.x0 + box.x1) / 2
        side = "left" if third < 1 else "middle" if third < 2 else "right"
        assert question.truth["answer"] == side and side in question.response
        sides[side] += 1
    # large boxes have room in the middle only; the majority answer is a baseline beside the score
    assert max(sides.values()) < 0.6 * sum(sides.values())


def test_count(asked):
    for plan, question in of(asked, "count"):
        assert question.truth["answer"] == NUMBER_WORDS[len(plan.objects)]
        assert question.response.endswith(f": {question.truth['answer']}.")


def label_in(question) -> str:
    (name,) = [name for name in CLASSES if re.search(rf"\b{name}\b", question.instruction)]
    return name


def test_exists_and_heard_and_seen(asked):
    for plan, question in of(asked, "exists"):
        assert question.truth["answer"] == (label_in(question) in plan.image_labels)
        verdict = "yes" if question.truth["answer"] else "no"
        assert question.response.endswith(f". A {label_in(question)}: {verdict}.")
    for plan, question in of(asked, "heard_and_seen"):
        name = label_in(question)
        assert question.truth["answer"] == (name in plan.image_labels and name in plan.audio_labels)
        assert name in plan.image_labels or name in plan.audio_labels


def test_first(asked):
    for plan, question in of(asked, "first"):
        begins = sorted((sound.start, sound.label) for sound in plan.sounds)
        assert begins[1][0] - begins[0][0] >= 0.7 - 1e-9
        assert question.truth["answer"] == begins[0][1]
        assert begins[0][1] in question.response


def test_captions_name_all_and_nothing_else(asked):
    for plan, question in of(asked, "avc"):
        seen, heard = question.response.split(". ")
        for names, said in ((plan.image_labels, seen), (plan.audio_labels, heard)):
            assert {name for name in CLASSES if re.search(rf"\b{name}\b", said)} == set(names)
            assert ("nothing" in said) == (not names)


def test_the_truth_of_a_question_is_the_scene(asked):
    for plan, question in asked[:500]:
        assert question.truth["image_labels"] == sorted(box.label for box in plan.objects)
        assert question.truth["audio_labels"] == sorted(sound.label for sound in plan.sounds)
        assert question.truth["sounds"] == [[s.label, s.start, s.end] for s in plan.sounds]

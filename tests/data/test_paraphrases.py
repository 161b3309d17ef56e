"""Wordings for real media: many, different, held apart by split, and read as what they say."""

from __future__ import annotations

import itertools
import re
import string

import pytest

from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.paraphrases import PARAPHRASES
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.entry import generator
from meerkat_jax.data.text import parse_boxes, parse_segments, write_box

FIELDS = {
    "arig": (),
    "igatl": (),
    "avfact1": ("box",),
    "avfact2": (),
    "avfact3": ("box", "start", "end"),
    "avfact4": ("start", "end"),
    "choice": ("question", "choices"),
    "word": ("question",),
    "avc": (),
}
FORMS = {"arig": "[object, x_left, y_top, x_right, y_bottom]", "igatl": "[object, start, end]"}
BOX = Box("dog", 0.1, 0.25, 0.5, 0.75)
GIVEN = {
    "box": "[0.100, 0.250, 0.500, 0.750]",
    "start": "1.5",
    "end": "4.0",
    "question": "What is it?",
    "choices": "a dog, a cat",
}
KINDS = sorted(FIELDS)
ALL = [
    (kind, split, text)
    for kind in PARAPHRASES
    for split in PARAPHRASES[kind]
    for text in PARAPHRASES[kind][split]
]


def words(text: str) -> list[str]:
    """What is said, without marks, case, fields and the form of the answer."""
    text = re.sub(r"Give \[.*\]\.$", "", text)
    return re.findall(r"[a-z']+", re.sub(r"\{\w+\}", "", text).lower())


def test_kinds_and_splits():
    assert sorted(PARAPHRASES) == KINDS
    assert all(set(splits) == {"train", "test"} for splits in PARAPHRASES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_many(kind):
    assert len(PARAPHRASES[kind]["train"]) >= 22 and len(PARAPHRASES[kind]["test"]) >= 6


def test_no_wording_comes_twice_in_any_kind_or_split():
    plain = [" ".join(re.findall(r"\w+", text.lower())) for _, _, text in ALL]
    assert len(set(plain)) == len(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_wordings_of_a_kind_are_nearly_the_same(kind):
    texts = [set(words(text)) for name, _, text in ALL if name == kind]
    for a, b in itertools.combinations(texts, 2):
        assert len(a & b) / len(a | b) <= 0.75, (a, b)


@pytest.mark.parametrize(("kind", "split", "text"), ALL)
def test_a_wording_has_the_fields_of_its_kind_once_each(kind, split, text):
    found = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    assert sorted(found) == sorted(FIELDS[kind])


@pytest.mark.parametrize(("kind", "split", "text"), ALL)
def test_a_wording_is_one_clean_line(kind, split, text):
    assert text == " ".join(text.split()) and text.isascii()
    assert text[-1] in ".?:" or text.endswith("{question}")
    assert text[0].isupper() or text.startswith("{question}")


@pytest.mark.parametrize(("kind", "split", "text"), [t for t in ALL if t[0] in FORMS])
def test_grounding_ends_with_the_form_and_holds_nothing_that_reads_as_an_answer(kind, split, text):
    assert text.endswith(f" Give {FORMS[kind]}.") and text.count("[") == 1
    assert not parse_boxes(text).items and not parse_segments(text).items


@pytest.mark.parametrize("kind", ["arig", "igatl"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_some_but_not_all_wordings_tell_the_unit(kind, split):
    unit = r"\b[01]\b|fraction" if kind == "arig" else r"\bseconds?\b"
    telling = [bool(re.search(unit, text)) for text in PARAPHRASES[kind][split]]
    assert any(telling) and not all(telling)


@pytest.mark.parametrize(("kind", "split", "text"), [t for t in ALL if "avfact" in t[0]])
def test_a_fact_check_ends_with_both_verdicts_and_its_places_read_back(kind, split, text):
    ending = re.split(r"[.:?] (?=[A-Z])", text)[-1] if "{" not in text[-30:] else text
    assert "True" in ending and "False" in ending
    assert text.count("True") == text.count("False") == 1
    assert not re.search(r"\b(not|never|no|nothing|neither|un\w+able)\b", text)
    filled = text.format(**GIVEN)
    found = parse_boxes(filled).items
    assert [(b.x0, b.y0, b.x1, b.y1) for b in found] == (
        [(BOX.x0, BOX.y0, BOX.x1, BOX.y1)] if "box" in FIELDS[kind] else []
    )
    for field in FIELDS[kind]:
        assert GIVEN[field] in filled
    times = [(s.start, s.end) for s in parse_segments(filled).items]
    assert all(time == (1.5, 4.0) for time in times)


@pytest.mark.parametrize(("kind", "split", "text"), [t for t in ALL if "{choices}" in t[2]])
def test_choices_and_question_stand_whole(kind, split, text):
    filled = text.format(question="Is it 'a' or {b}?", choices="{b}, don't know, 3/4")
    assert "Is it 'a' or {b}?" in filled and "{b}, don't know, 3/4" in filled


def test_the_questions_of_sources_take_them():
    rng = generator(0, "test")
    for _ in range(60):
        for split in ("train", "test"):
            asking.arig(rng, split, [BOX])
            asking.igatl(rng, split, [Segment("dog", 1.5, 4.0)])
            asking.choice(rng, split, "What is it?", ["a", "b"], "a", "kind")
            asking.word(rng, split, "What is it?", "a", "kind")
            asking.avc(rng, split, ["A dog barks."])
            for kind in (1, 2, 3, 4):
                box = BOX if kind in (1, 3) else None
                times = (1.5, 4.0) if kind in (3, 4) else None
                asked = asking.avfact(rng, split, f"avfact{kind}", True, "I hear it", box, times)
                assert ("[" in asked.instruction) == (box is not None)
                assert ("1.5" in asked.instruction) == (times is not None)
    assert write_box(BOX).endswith(GIVEN["box"][1:])

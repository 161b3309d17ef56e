"""Templates: train and test wordings differ, but a test wording holds no word that is new."""

from __future__ import annotations

import re
import string

import pytest

from meerkat_jax.data.example import TASKS
from meerkat_jax.mini import templates
from meerkat_jax.mini.templates import TEMPLATES

KINDS = sorted(TEMPLATES)


def words(text: str) -> list[str]:
    """Words and marks, as a tokenizer of words sees them; no fields."""
    return re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", "", text))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_task_has_templates():
    assert set(TASKS) - {"avqa"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_test_paraphrases_are_disjoint(kind):
    train, test = TEMPLATES[kind]["train"], TEMPLATES[kind]["test"]
    assert len(train) >= 3 and len(test) >= 2
    assert len({*train, *test}) == len(train) + len(test)


def test_no_test_paraphrase_is_a_train_paraphrase_of_another_kind():
    train = {text for split in TEMPLATES.values() for text in split["train"]}
    assert not train & {text for split in TEMPLATES.values() for text in split["test"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_of_a_test_paraphrase_occurs_in_some_train_paraphrase(kind):
    known = {
        word for split in TEMPLATES.values() for text in split["train"] for word in words(text)
    }
    for text in TEMPLATES[kind]["test"]:
        assert not set(words(text)) - known, text


@pytest.mark.parametrize("kind", KINDS)
def test_paraphrases_of_a_kind_have_the_same_fields(kind):
    texts = [text for split in TEMPLATES[kind].values() for text in split]
    assert len({frozenset(fields(text)) for text in texts}) == 1


@pytest.mark.parametrize(("split", "bank"), [("train", "train"), ("compositions", "test")])
def test_instruction_draws_from_the_splits_own_paraphrases(split, bank):
    texts = {templates.instruction("count", split, choice) for choice in range(100)}
    assert texts == set(TEMPLATES["count"][bank])


def test_instruction_fills_every_field():
    for kind in KINDS:
        filled = dict.fromkeys(("label", "box", "start", "end"), "X")
        assert not fields(templates.instruction(kind, "train", 0, **filled))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), "nothing"),
        (("owl",), "a owl"),
        (("owl", "bee"), "a owl and a bee"),
        (("owl", "dog", "bee"), "a owl, a dog and a bee"),
    ],
)
def test_listing(names, text):
    assert templates.listing(names) == text


@pytest.mark.parametrize(
    ("point", "place"),
    [
        ((0.0, 0.0), "at the top left"),
        ((0.1, 0.5), "on the left"),
        ((0.5, 0.2), "at the top"),
        ((0.5, 0.5), "in the middle"),
        ((0.9, 0.4), "on the right"),
        ((1.0, 1.0), "at the bottom right"),
    ],
)
def test_a_point_has_a_place(point, place):
    column, row = templates.place_of(*point)
    assert templates.PLACES[column][row] == place


def test_evidence_says_seen_before_heard():
    seen = (("on the left", "bee"), ("at the top", "owl"))
    assert templates.evidence(seen, ()) == (
        "I see two, on the left a bee, at the top a owl. I hear nothing"
    )
    assert templates.evidence(seen[:1], ("dog", "bee")) == (
        "I see one, on the left a bee. I hear a dog out of sight and a bee in sight"
    )


def test_what_is_heard_is_placed_before_in_or_after_the_time_that_is_asked_about():
    told = templates.hearing(("dog", "bee"), ["bee"], templates.SOURCES, ["too late", "in time"])
    assert told == "I hear a dog from elsewhere too late and a bee from the box in time"

"""Names and short answers are found in sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.evaluation.answer_parsing import (
    canonical,
    find_terms,
    last_term,
    normalise,
    read_answer,
)

NAMES = ["lion", "sea lion", "sea_gull", "ox", "washing machine"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A lion, then a sea lion.", ["lion", "sea lion"]),
        ("the Sea-Gull and the OX", ["sea gull", "ox"]),
        ("a fox in a box", []),
        ("washing\n machine!", ["washing machine"]),
        ("", []),
    ],
)
def test_terms_are_whole_words_and_the_longest_wins(text, expected):
    assert [term for _, term in find_terms(text, NAMES)] == expected


def test_last_term():
    assert last_term("not the ox but the lion", NAMES) == "lion"
    assert last_term("nothing", NAMES) is None
    assert last_term("a lion", []) is None


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("exists", "I see no ox but a lion: yes.", "yes"),
        ("heard_and_seen", "Yes? I think: NO", "no"),
        ("exists", "That is not true.", "no"),
        ("exists", "No, that is untrue.", "no"),
        ("heard_and_seen", "Yes, no other ox is heard", "yes"),
        ("exists", "maybe", None),
        ("count", "I see a lion and an ox: two.", "2"),
        ("count", "There are 03 of them", "3"),
        ("count", "I see nothing: no.", "0"),
        ("count", "some", None),
        ("where", "The ox is in the centre.", "middle"),
        ("where", "not left, but on the right", "right"),
        ("where", "up", None),
        ("which", "The sea lion makes the sound.", "sea lion"),
        ("first", "First the ox, then the lion", "lion"),
        ("unheard_of_kind", "An ox.", "ox"),
        ("which", "a giraffe", None),
    ],
)
def test_read_answer(kind, text, expected):
    assert read_answer(text, kind, NAMES) == expected


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("exists", True, {"yes"}),
        ("exists", False, {"no"}),
        ("count", "two", {"2"}),
        ("count", 2, {"2"}),
        ("count", "no", {"0"}),
        ("where", "centre", {"middle"}),
        ("first", ["Sea_Lion", "ox"], {"sea lion", "ox"}),
    ],
)
def test_canonical(kind, answer, expected):
    assert canonical(answer, kind) == expected


@given(st.text(max_size=80), st.lists(st.text(max_size=8), max_size=5))
def test_any_text_and_any_terms_are_read(text, terms):
    found = find_terms(text, terms)
    assert all(normalise(text).startswith(term, at) for at, term in found)
    assert {term for _, term in found} <= {normalise(term) for term in terms}
    ends = [at + len(term) for at, term in found]
    assert all(end <= at for end, (at, _) in zip(ends, found[1:], strict=False))

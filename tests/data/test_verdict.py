"""Verdicts in texts as models word them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.data.verdict import parse_verdict, with_verdict

TRUE = [
    "True", "true.", "**True**", "Yes", "yes.", "Yes, a bee is heard.", "Yes it is.", "YES!",
    "I see a bee. I hear a bee: True.", "The claim is correct.", "The answer is yes.",
    "It is not false.", "It isn't untrue.", "That is not wrong", "'Yes'",
    "Is it true or false? True.", "I do not hear a dog so the claim is true.", "Yes - it barks.",
    "It is not true that it is false.", "Is there a dog? Yes.", "I hear no dog, yes, it is true.",
    "The dog does not bark, it is true.", "There is no doubt that it is true.",
    "I don't doubt it is true.", "Without a doubt true", "It is not unlikely that it is true.",
]  # fmt: skip
FALSE = [
    "False", "false.", "No", "No, nothing is heard.", "The answer is no.", "The answer is: no.",
    "The claim is not true.", "The claim isn't true.", "It isn’t true", "That's untrue.",
    "It cannot be true.", "The claim is incorrect.", "That is not correct.", "This is wrong.",
    "I do not think that is true.", "I don't believe the claim is true.", "False, not true.",
    "It is not the case that the statement is true.", "That is not really true.",
    "It is never true", "Neither claim is true.", "No, that is not true.", "No it isn't.",
    "True? No: FALSE", "I hear a bee: False.", "I said it is true. On reflection: false.",
    "It is true that it is false.", "Far from true.", "That true colours are seen is false.",
    "The box holds a dog, it is true. I hear a cat: False.", "I doubt that it is true.",
    "It is unlikely to be true.", "It is by no means true.", "This is anything but true.",
    "The claim fails to be true.", "It is impossible that this is true.", "In no way true.",
]  # fmt: skip
NEITHER = [
    "", "There is no dog.", "I see no dog and hear none", "True or False?", "true/false",
    "Is it true?", "neither true nor false", "neither", "I cannot say whether it is true.",
    "truth and falsehood", "truly", "a true-to-life dog", "nontrue", "true_color", "Nobody",
    "No dog barks.", "yesterday", "True. False.", "Yes, that is not true.", "No, it is true.",
    "false, or rather TRUE", "no one", "I wonder if that is false", "Yes or no?", "Not a dog",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "verdict"),
    [(text, True) for text in TRUE] + [(text, False) for text in FALSE]
    + [(text, None) for text in NEITHER],
)  # fmt: skip
def test_what_a_text_says_of_a_claim(text, verdict):
    assert parse_verdict(text) is verdict


words = st.sampled_from(
    "true false True not n't yes no Yes, No. : . , ? whether or / that is it think not".split()
)


@given(st.one_of(st.text(), st.lists(words).map(" ".join)))
def test_any_text_is_read_and_what_is_replaced_reads_back(text):
    assert parse_verdict(text) in (True, False, None)
    for value in (True, False):
        replaced = with_verdict(text, value)
        assert replaced is None or parse_verdict(replaced) is value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I hear a dog: False.", "I hear a dog: True."),
        ("It is false. I hear a dog: false", "It is false. I hear a dog: True"),
        ("false, or rather TRUE", None),  # says both
        ("The claim is not true.", None),  # worded otherwise
        ("No.", None),
        ("", None),
    ],
)
def test_the_last_verdict_is_replaced(text, expected):
    assert with_verdict(text, True) == expected


@pytest.mark.parametrize(
    "piece",
    ["true ", "not ", "not  true ", "not a ", " ", "true that ", "true or false ", "if it ", "no, "]
    + ["?", "'", ": true", "n't", "yes\n"],
)  # fmt: skip
def test_long_texts_take_time_in_proportion(piece):
    for start, end in (("", ""), ("true", "false"), ("not", "true"), ("no", "x")):
        parse_verdict(f"{start}{piece * (100_000 // len(piece))}{end}")

"""The verdict on a claim in a text: true or false, as a model words it.

Looked for are True and False and words that say the same (correct, wrong, untrue), with what turns
them round in front ("not", "isn't really", "I do not think that is"), and Yes and No where they are
an answer ("Yes, ...", "The answer is no."; not "no dog"). Where a colon stands before the last of
them, as in our answers, which give the evidence first ("I hear a dog: False."), what follows it
decides; else all of them have to agree. Words that only name what is asked ("true or false",
"whether it is true", "True?") are no verdict. Without one, or with several that differ, there is
none: a guess would be a score.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FALSE = ("false", "untrue", "incorrect", "wrong", "no")
# What may stand between "not" and the word that it turns round, as in "I do not think that is".
_LIGHT = (
    "a an the i we it this that is was be been to at all as really quite entirely actually exactly "
    "necessarily strictly completely fully always seem seems appear appears sound look hold say "
    "think believe find consider call case claim statement assertion sentence description"
).split()
# What may follow a verdict directly; before other words it is no verdict, but an adjective of
# theirs ("true colours").
_AFTER = (
    "that and or nor but because as since for so in to of if when while here then now too also "
    "indeed the a an i it this there we you both not yes no true false claim statement assertion "
    "sentence description"
).split()
_ON = rf"(?:\s++(?:{'|'.join(_LIGHT)})\b)*+"
# "no doubt", "cannot doubt", "not unlikely" turn nothing round.
_DOUBT = r"(?<!no\ )(?<!t\ )(?<!\ba\ )(?<!beyond\ )\b(?:doubt(?:s|ed|ful)?|unlikely|impossible)"
_WORD = re.compile(
    rf"""
    (?: (?P<hedge> \b(?:whether|if) {_ON} \s++ )
      | (?P<not> (?: \b(?:not|never|hardly|neither|cannot|no\ longer|far\ from|by\ no\ means
            |in\ no\ way|anything\ but|fails?) | n['’]t | {_DOUBT} )
          {_ON} \s++ ) )?
    (?<! [\w-] ) (?P<word> true|false|untrue|correct|incorrect|wrong )
      (?! [\w-] | \s++ (?! (?:{"|".join(_AFTER)})\b ) \w )
    | (?: \A | [.,:;!?\n(] | \b(?:is|be|say|answer) ) [\W_]{{0,4}}
      (?<! \w ) (?P<answer> yes|no )
      (?= [ \t]*+ (?: [.,:;!?)"'*–—\n] | \Z ) | \s+-\s | \s++ (?:it|this|that|there|the)\b )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OR = {"/", "or", "nor", "and", ", or", ", nor"}
_THAT = re.compile(rf"\s+that{_ON}\s+", re.IGNORECASE)
_QUESTION = re.compile(r"[\s\"'*)]*\?")


class _Said(NamedTuple):
    """One verdict in a text: where it stands, what it says, and whether it is True or False."""

    start: int
    end: int
    value: bool
    plain: bool


def parse_verdict(text: str) -> bool | None:
    """What `text` says of a claim; None when it says neither, or both. Never raises."""
    said = _deciding(text)
    return said[0].value if len({one.value for one in said}) == 1 else None


def with_verdict(text: str, value: bool) -> str | None:
    """The text with its last True or False replaced by `value`.

    None when that would not read as `value`: the text has no verdict, or words it otherwise.
    """
    said = _deciding(text)
    if not said or not said[-1].plain:
        return None
    replaced = f"{text[: said[-1].start]}{value}{text[said[-1].end :]}"
    good = parse_verdict(text) is not None and parse_verdict(replaced) is value
    return replaced if good else None


def _deciding(text: str) -> list[_Said]:
    """The verdicts behind the last colon; without any there, all."""
    said, colon = _verdicts(text), text.rfind(":")
    return [one for one in said if one.start > colon] or said


def _verdicts(text: str) -> list[_Said]:
    found: list[_Said] = []
    words = [*_WORD.finditer(text)]
    names = [match["word"] or match["answer"] for match in words]
    base = [name.lower() not in _FALSE for name in names]
    asked = set()  # numbers of those that only name what is asked
    for number, match in enumerate(words):
        between = text[words[number - 1].end() : match.start()] if number else ""
        if " ".join(between.lower().split()) in _OR and base[number] != base[number - 1]:
            asked |= {number - 1, number}
        if match["hedge"] or _QUESTION.match(text, match.end()):
            asked.add(number)
    before = None  # the verdict that stands directly before
    for number, match in enumerate(words):
        if number in asked:
            before = None
            continue
        value = base[number] != bool(match["not"])
        if before and _THAT.fullmatch(
            text, before.end, match.start()
        ):  # "not true that it is false"
            value = value == found.pop().value
        start = match.end() - len(names[number])
        plain = not match["not"] and names[number].lower() in ("true", "false")
        before = _Said(start, match.end(), value, plain)
        found.append(before)
    return found

"""Reading names and short answers out of free text.

A language model answers in sentences; the metrics need the name, number, place or yes/no in them.
The rule everywhere: text and vocabulary are normalised alike, the longest term wins ("sea lion" is
not "lion"), and where several terms stand in a short answer the last one is the answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from meerkat_jax.data.verdict import parse_verdict

YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}
PLACES = {"left": "left", "middle": "middle", "centre": "middle", "center": "middle"} | {
    "right": "right"
}
_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBERS = {word: str(i) for i, word in enumerate(_COUNTING)} | {"none": "0", "no": "0"}
YES_NO_KINDS = ("exists", "heard_and_seen")


def normalise(text: str) -> str:
    """Lower case; underscores, hyphens and runs of space become one space."""
    return " ".join(re.sub(r"[_\-\s]+", " ", str(text).lower()).split())


def find_terms(text: str, terms: Iterable[str]) -> list[tuple[int, str]]:
    """Places (in the normalised text) and normalised names of all terms that stand in it as words.

    Terms do not overlap: the longest is taken where several begin at one place.
    """
    pattern = _pattern(tuple(sorted({normalise(t) for t in terms} - {""})))
    if pattern is None:
        return []
    return [(m.start(), m.group()) for m in pattern.finditer(normalise(text))]


def last_term(text: str, terms: Iterable[str]) -> str | None:
    """The last of `terms` that stands in the text, normalised, or None."""
    found = find_terms(text, terms)
    return found[-1][1] if found else None


def read_answer(text: str, kind: str, vocabulary: Iterable[str]) -> str | None:
    """The short answer in an AVQA response, in one canonical form; None where there is none.

    Kinds `exists` and `heard_and_seen` give "yes" or "no", `count` digits, `where` left, middle or
    right; every other kind the last term of `vocabulary`.
    """
    if kind in YES_NO_KINDS:
        said = parse_verdict(text)  # "not true" is no "yes"
        if said is not None:
            return "yes" if said else "no"
        return YES_NO.get(last_term(text, YES_NO))
    if kind == "where":
        return PLACES.get(last_term(text, PLACES))
    if kind == "count":
        return _last_number(text)
    return last_term(text, vocabulary)


def canonical(answer: object, kind: str) -> frozenset[str]:
    """The acceptable answers of a truth (bool, number, word, or a list of such), canonical."""
    if isinstance(answer, (list, tuple, set, frozenset)):
        return frozenset().union(*(canonical(a, kind) for a in answer))
    if isinstance(answer, bool):
        return frozenset({"yes" if answer else "no"})
    word = normalise(answer)
    if kind == "count":
        return frozenset({NUMBERS.get(word, word)})
    if kind == "where":
        return frozenset({PLACES.get(word, word)})
    return frozenset({YES_NO.get(word, word) if kind in YES_NO_KINDS else word})


def _last_number(text: str) -> str | None:
    found = re.findall(rf"\b(?:\d+|{'|'.join(NUMBERS)})\b", normalise(text))
    if not found:
        return None
    return NUMBERS.get(found[-1]) or str(int(found[-1]))


@functools.lru_cache(maxsize=256)
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str] | None:
    if not terms:
        return None
    longest_first = sorted(terms, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

"""Captions by themselves: are the seen and the heard things named exactly right?

A caption tells what is seen and what is heard. Every class name in it is given to one of the two:
within a clause, names go to the marker word ("seen", "hear", "sound", ...) they stand after, or,
where a name comes before any marker ("a dog is heard"), to the next marker behind them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from meerkat_jax.evaluation.answer_parsing import find_terms, normalise

_SEEING = "see sees seen seeing show shows shown picture image photo photograph scene visible view"
_HEARING = "hear hears heard hearing sound sounds sounding audible audio recording clip listen"
_MARKERS = {w: "image" for w in _SEEING.split()} | {w: "audio" for w in _HEARING.split()}
_CLAUSE = re.compile(r"[.;:!?\n]+|\b(?:while|whereas|whilst|but)\b")


@dataclasses.dataclass(frozen=True)
class Named:
    """The class names that a caption says are seen and heard, normalised."""

    image_labels: frozenset[str]
    audio_labels: frozenset[str]


def read_caption(text: str, names: Iterable[str]) -> Named:
    """Sort the class names of a caption into seen and heard.

    A clause without a marker continues the one before it; without any marker at all its names are
    taken as seen.
    """
    terms = set(map(normalise, names))
    found: dict[str, set[str]] = {"image": set(), "audio": set()}
    modality = "image"
    for clause in _CLAUSE.split(normalise(text)):
        hits = find_terms(clause, terms | set(_MARKERS))
        markers = [(at, _MARKERS[t]) for at, t in hits if t in _MARKERS and t not in terms]
        named = [(at, t) for at, t in hits if t in terms]
        leads = bool(markers and named and markers[0][0] < named[0][0])
        for at, name in named:
            modality = _modality(at, markers, leads, modality)
            found[modality].add(name)
        modality = markers[-1][1] if markers else modality
    return Named(frozenset(found["image"]), frozenset(found["audio"]))


def caption_samples(predicted: Sequence[Named], true: Sequence[Named]) -> dict[str, list[bool]]:
    """Of each caption: are both lists of names exactly right, and is each of them."""
    pairs = list(zip(predicted, true, strict=True))
    return {
        "names_right": [p == t for p, t in pairs],
        "seen_right": [p.image_labels == t.image_labels for p, t in pairs],
        "heard_right": [p.audio_labels == t.audio_labels for p, t in pairs],
    }


def _modality(at: int, markers: list[tuple[int, str]], leads: bool, otherwise: str) -> str:
    if leads:
        return [m for place, m in markers if place < at][-1]
    behind = [m for place, m in markers if place > at]
    before = [m for place, m in markers if place < at]
    return behind[0] if behind else before[-1] if before else otherwise

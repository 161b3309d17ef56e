"""Counts over the records of a split, gathered one record at a time.

Of media, ids and wordings only hashes of eight bytes are kept, so three million records take some
hundred megabytes.
"""

from __future__ import annotations

import io
from array import array
from collections import Counter
from typing import NamedTuple

import numpy as np
import soundfile

from meerkat_jax.data.example import Box, Example, Question, Segment
from meerkat_jax.data.leaks import hashed
from meerkat_jax.data.text import parse_boxes, parse_segments

GRID = 16  # cells of the map of boxes, each way
CLAIMS = ("avfact1", "avfact2", "avfact3", "avfact4")
OF_BOXES = ("avfact1", "avfact3")  # claims about a box
OF_TIMES = ("avfact3", "avfact4")  # claims about an interval
TWICE = ("image", "sound", "image with sound", "id")
ROUNDING = 1e-3  # between a box as it is kept and as it stands in a text


class Repeats(NamedTuple):
    """Things that are there more than once.

    `distinct` things, `extra` records beyond the first of each, and of the `groups` things that
    are there more than once the most frequent: (number of the first record, how many times).
    """

    distinct: int
    extra: int
    groups: int
    most: list[tuple[int, int]]


def asked_boxes(question: Question) -> list[Box]:
    """The boxes that a claim is about, with the labels that the truth gives them.

    The truth may list all objects of the scene; those that the instruction names are meant.
    """
    if question.task not in OF_BOXES:
        return []
    objects = [Box(*fields) for fields in question.truth.get("objects") or ()]
    written = parse_boxes(question.instruction).items
    meant = [box for box in objects if any(_same_place(box, other) for other in written)]
    return meant or [Box("", *corners(box)) for box in written] or objects


def asked_interval(question: Question) -> list[Segment]:
    """The stretch of time that a claim is about: none or one."""
    if question.task not in OF_TIMES:
        return []
    if question.truth.get("interval"):
        return [Segment("", *question.truth["interval"])]
    # In a wording times stand as plain words: "between 1.0 and 2.5".
    return list(parse_segments(question.instruction.replace(" and ", " to ")).items)


def corners(box: Box) -> tuple[float, float, float, float]:
    """A box without its label."""
    return box.x0, box.y0, box.x1, box.y1


def _same_place(box: Box, other: Box) -> bool:
    pairs = zip(corners(box), corners(other), strict=True)
    return all(abs(a - b) <= ROUNDING for a, b in pairs)


class Statistics:
    """What is counted; `add` each record once, in order."""

    def __init__(self) -> None:
        self.records = 0
        self.matched: Counter[bool] = Counter()
        self.sources: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # "task/kind"
        self.holding: Counter[str] = Counter()  # records that have a question of "task/kind"
        self.verdicts: Counter[tuple[str, bool]] = Counter()  # ("task/kind", answer)
        self.claims: Counter[tuple[str, str, bool]] = Counter()  # (task, class, answer)
        self.image_labels: Counter[str] = Counter()
        self.audio_labels: Counter[str] = Counter()
        self.boxes = 0
        self.boxes_each: Counter[int] = Counter()  # distinct boxes of a record
        self.areas: Counter[int] = Counter()  # per cent of the image, rounded down
        self.places = np.zeros((GRID, GRID))  # boxes over each cell, in parts
        self.seconds: Counter[float] = Counter()  # of sounds, to a tenth
        self.unread = 0  # sounds that cannot be opened
        self.segments: Counter[int] = Counter()  # of a question about times
        self.lengths: Counter[float] = Counter()  # of segments in seconds, to a tenth
        self.intervals: Counter[float] = Counter()  # of claims, in seconds, to a tenth
        self.instructions: Counter[int] = Counter()  # characters
        self.responses: Counter[int] = Counter()
        self._wordings = {"instruction": array("Q"), "response": array("Q")}
        self._twice = {what: array("Q") for what in TWICE}

    def add(self, example: Example) -> None:
        """Count one record."""
        self.records += 1
        self.matched[example.matched] += 1
        self.sources[example.source] += 1
        self.image_labels.update(set(example.image_labels))
        self.audio_labels.update(set(example.audio_labels))
        for question in example.questions:
            self._add_question(example, question)
        self.holding.update({kind_of(question) for question in example.questions})
        self._add_boxes(example)
        try:
            self.seconds[round(soundfile.info(io.BytesIO(example.audio)).duration, 1)] += 1
        except (soundfile.SoundFileError, TypeError):
            self.unread += 1
        hashes = [hashed(example.image), hashed(example.audio)]
        both = b"".join(value.to_bytes(8, "little") for value in hashes)
        hashes += [hashed(both), hashed(example.id)]
        for what, value in zip(TWICE, hashes, strict=True):
            self._twice[what].append(value)

    def _add_question(self, example: Example, question: Question) -> None:
        kind, said = kind_of(question), question.truth.get("answer")
        self.kinds[kind] += 1
        if isinstance(said, bool):
            self.verdicts[kind, said] += 1
            if question.task in CLAIMS:
                # A claim is about what is in its box; without a box, about what is heard.
                names = {box.label for box in asked_boxes(question)} or set(example.audio_labels)
                self.claims.update((question.task, name, said) for name in names)
        if question.segments:
            self.segments[len(question.segments)] += 1
        for counter, segments in (
            (self.lengths, question.segments),
            (self.intervals, asked_interval(question)),
        ):
            counter.update(round(one.end - one.start, 1) for one in segments)
        self.instructions[len(question.instruction)] += 1
        self.responses[len(question.response)] += 1
        for what, text in (
            ("instruction", question.instruction),
            ("response", question.response),
        ):
            self._wordings[what].append(hashed(text))

    def _add_boxes(self, example: Example) -> None:
        found = {corners(box) for box in example.boxes}
        for question in example.questions:
            found |= {corners(box) for box in (*question.boxes, *asked_boxes(question))}
        self.boxes_each[len(found)] += 1
        self.boxes += len(found)
        for x0, y0, x1, y1 in found:
            self.areas[min(99, int(100 * (x1 - x0) * (y1 - y0) + 1e-6))] += 1
            self.places += np.outer(_covered(y0, y1), _covered(x0, x1))

    def distinct(self, what: str) -> int:
        """How many different texts there are; `what` is "instruction" or "response"."""
        return len(np.unique(np.array(self._wordings[what], np.uint64)))

    def repeats(self, what: str, most: int = 5) -> Repeats:
        """What is there more than once; `what` is of TWICE. Records are numbered as added."""
        hashes = np.array(self._twice[what], np.uint64)
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        order = np.lexsort((first, -counts))
        order = order[counts[order] > 1]
        top = [(int(first[place]), int(counts[place])) for place in order[:most]]
        return Repeats(len(counts), len(hashes) - len(counts), len(order), top)


def kind_of(question: Question) -> str:
    """A question's task and kind, "task/kind"."""
    return f"{question.task}/{question.truth.get('kind', question.task)}"


def _covered(low: float, high: float) -> np.ndarray:
    """float[GRID], the share of each cell of 0..1 that lies between `low` and `high`."""
    edges = np.arange(GRID)
    return np.clip(np.minimum(high * GRID, edges + 1) - np.maximum(low * GRID, edges), 0, 1)

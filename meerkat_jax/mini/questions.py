"""Every question of the paper's tasks that one scene allows, with its answer and its truth.

Verdicts are balanced by construction: each yes/no question draws the answer it wants first, with
odds that make up for how often each is possible (tests/mini/test_questions.py measures the shares).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.text import write_box, write_segment
from meerkat_jax.mini import templates
from meerkat_jax.mini.compose import CLIP_SECONDS, Plan
from meerkat_jax.mini.templates import (
    NUMBER_WORDS,
    PLACES,
    SIDES,
    SOURCES,
    TIMES,
    Thing,
    evidence,
    hearing,
    listing,
    place_of,
    placed,
    sight,
    yes_no,
)

MARGIN = 0.3  # seconds and more between an interval and a sound that it must not hold
KEEP_QUIET = 0.25  # share of the false claims about an interval that stay where nothing sounds
KEEP_TRUE_2 = 0.62  # share of the matched scenes that ask type 2; makes true as frequent as false


class Asker:
    """Writes the questions of one scene. `boxes` are the boxes as rendered."""

    def __init__(self, rng, plan: Plan, boxes: tuple[Box, ...], classes, split: str):
        self.rng, self.plan, self.classes, self.split = rng, plan, classes, split
        self.boxes = {box.label: box for box in boxes}
        self.sounds = {sound.label: sound for sound in plan.sounds}
        self.image_labels = [self._placed(name) for name in sorted(self.boxes, key=self._reading)]
        self.audio_labels = sorted(self.sounds, key=lambda name: (self.sounds[name].start, name))

    def all(self) -> tuple[Question, ...]:
        """The questions that this scene allows, in the order of the tasks."""
        kinds = ("arig", "igatl", "avfact1", "avfact2", "avfact3", "avfact4", "which", "count")
        kinds += ("where", "exists", "first", "heard_and_seen", "avc")
        questions = (getattr(self, f"ask_{kind}")() for kind in kinds)
        return tuple(question for question in questions if question is not None)

    def question(
        self, task, kind, response, answer=None, boxes=(), segments=(), interval=(), **fields
    ):
        """A Question with the paraphrase drawn and the truth written down."""
        choice = int(self.rng.integers(1 << 16))
        truth = {
            "kind": kind,
            "answer": answer,
            "image_labels": list(self.plan.image_labels),
            "audio_labels": list(self.plan.audio_labels),
            "objects": [[b.label, b.x0, b.y0, b.x1, b.y1] for b in self.boxes.values()],
            "sounds": [[s.label, s.start, s.end] for s in self.plan.sounds],
        } | ({"interval": list(interval)} if interval else {})
        if interval:
            fields |= {"start": f"{interval[0]:.1f}", "end": f"{interval[1]:.1f}"}
        text = templates.instruction(kind, self.split, choice, **fields)
        return Question(task, text, response, tuple(boxes), tuple(segments), truth)

    def coin(self, true_possible: bool, false_possible: bool, odds: float) -> bool | None:
        """The verdict to ask for: drawn first, None when this scene cannot give it."""
        wanted = bool(self.rng.random() < odds)
        return wanted if (true_possible if wanted else false_possible) else None

    def choose(self, names) -> str:
        """One of `names`, drawn evenly from their alphabetical order."""
        return str(self.rng.choice(sorted(names)))

    # grounding in space and time

    def ask_arig(self):
        """Audio-referred image grounding: the boxes of all that sounds and is seen."""
        if not self.plan.both:
            return None
        boxes = [self.boxes[name] for name in self.audio_labels if name in self.plan.both]
        return self.question("arig", "arig", self._found(map(write_box, boxes)), boxes=boxes)

    def ask_igatl(self):
        """Image-guided temporal localisation: the segments of all that is seen and sounds."""
        if not self.plan.both:
            return None
        segments = [self.sounds[name] for name in self.audio_labels if name in self.plan.both]
        response = self._found(map(write_segment, segments))
        return self.question("igatl", "igatl", response, segments=segments)

    # fact checks: {box, whole picture} x {whole clip, interval}

    def verdict(self, task, value: bool, reason: str, **fields):
        """A fact check whose answer gives the evidence first."""
        return self.question(task, task, f"{reason}: {value}.", value, **fields)

    def ask_avfact1(self):
        """Does what is in the box make this sound?"""
        silent = set(self.plan.image_labels) - set(self.plan.audio_labels)
        value = self.coin(bool(self.plan.both), bool(silent), 0.55)
        if value is None:
            return None
        name = self.choose(self.plan.both if value else silent)
        reason = f"{self._held(name)}. I hear {listing(self.audio_labels)}"
        return self.verdict("avfact1", value, reason, box=self._corners(name))

    def ask_avfact2(self):
        """Does the clip hold the sound of something seen?"""
        value = bool(self.plan.both)
        if value and self.rng.random() > KEEP_TRUE_2:
            return None
        return self.verdict("avfact2", value, evidence(self.image_labels, self.audio_labels))

    def ask_avfact3(self):
        """Does what is in the box sound in this interval?"""
        value = self.coin(bool(self.plan.both), True, 0.54)
        if value is None:
            return None
        name = self.choose(self.plan.both if value else self.plan.image_labels)
        wanted = [self.sounds[name]] if name in self.sounds else []
        interval = self._checked(wanted, value)
        if interval is None:
            return None
        heard = hearing(self.audio_labels, [name], SOURCES, self._times(interval))
        reason = f"{self._held(name)}. {heard}"
        return self.verdict("avfact3", value, reason, box=self._corners(name), interval=interval)

    def ask_avfact4(self):
        """Is something seen heard in this interval?"""
        value = self.coin(bool(self.plan.both), True, 0.46)
        if value is None:
            return None
        names = [self.choose(self.plan.both)] if value else self.plan.both
        interval = self._checked([self.sounds[name] for name in names], value)
        if interval is None:
            return None
        reason = evidence(self.image_labels, self.audio_labels, self._times(interval))
        return self.verdict("avfact4", value, reason, interval=interval)

    # audio-visual questions

    def ask_which(self):
        """Which object makes the sound? Asked when exactly one does."""
        if len(self.plan.both) != 1:
            return None
        name = self.plan.both[0]
        return self.question("avqa", "which", f"The {name} makes the sound.", name)

    def ask_count(self):
        """How many objects are seen?"""
        number = NUMBER_WORDS[len(self.plan.image_labels)]
        response = f"{sight(self.image_labels)}: {number}."
        return self.question("avqa", "count", response, number)

    def ask_where(self):
        """Where is what sounds? Asked when one thing does and its side is plain."""
        if len(self.plan.both) != 1:
            return None
        name = self.plan.both[0]
        x, y = self._centre(name)
        if min(abs(x - 1 / 3), abs(x - 2 / 3)) < 0.03:
            return None
        side = SIDES[place_of(x, y)[0]]
        return self.question("avqa", "where", f"It is{placed([self._placed(name)])}: {side}.", side)

    def ask_exists(self):
        """Is there such a thing in the picture? A thing that is only heard is a fair catch."""
        value = bool(self.rng.random() < 0.5)
        absent = set(self.classes) - set(self.plan.image_labels)
        heard_only = absent & set(self.plan.audio_labels)
        if not value and heard_only and self.rng.random() < 0.5:
            absent = heard_only
        name = self.choose(self.plan.image_labels if value else absent)
        response = f"{sight(self.image_labels)}. {self._named(name)}: {yes_no(value)}."
        return self.question("avqa", "exists", response, value, label=name)

    def ask_first(self):
        """Which of two sounds comes first? Asked when they begin 0.7 s or more apart."""
        if len(self.plan.sounds) != 2:
            return None
        first, second = (self.sounds[name] for name in self.audio_labels)
        if second.start - first.start < 0.7:
            return None
        response = f"I hear {listing(self.audio_labels)}. The {first.label} comes first."
        return self.question("avqa", "first", response, first.label)

    def ask_heard_and_seen(self):
        """Is it both heard and seen? A no is about something that is one of the two."""
        one = set(self.plan.image_labels) ^ set(self.plan.audio_labels)
        value = self.coin(bool(self.plan.both), bool(one), 0.6)
        if value is None:
            return None
        name = self.choose(self.plan.both if value else one)
        reason = evidence(self.image_labels, self.audio_labels)
        response = f"{reason}. {self._named(name)}: {yes_no(value)}."
        return self.question("avqa", "heard_and_seen", response, value, label=name)

    def ask_avc(self):
        """A caption that names all that is seen and heard."""
        return self.question("avc", "avc", f"{evidence(self.image_labels, self.audio_labels)}.")

    # helpers

    def _centre(self, name: str) -> tuple[float, float]:
        box = self.boxes[name]
        return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2

    def _reading(self, name: str) -> tuple:
        """Sort key: by place, column by column, and within one place from left to right."""
        return place_of(*self._centre(name)), self._centre(name)

    def _placed(self, name: str) -> Thing:
        column, row = place_of(*self._centre(name))
        return PLACES[column][row], name

    def _found(self, written: Iterable[str]) -> str:
        """Boxes or segments of what is both, after all that is seen and all that is heard."""
        return f"{evidence(self.image_labels, self.audio_labels)}: {' '.join(written)}"

    def _held(self, name: str) -> str:
        """What a box in the question holds: its place in words, then its name."""
        return f"The box holds{placed([self._placed(name)])}"

    def _corners(self, name: str) -> str:
        """The box without its label: the question must not give the name away."""
        return "[" + write_box(self.boxes[name]).split(", ", 1)[1]

    def _named(self, name: str) -> str:
        """What was asked for, said again: the verdict then looks if its last word came before."""
        return f"A {name}"

    def _times(self, interval: tuple[float, float]) -> list[str]:
        """Of each sound whether it is over before the interval, heard in it, or begins after it."""
        start, end = interval
        told = [self.sounds[name] for name in self.audio_labels]
        return [TIMES[1 + (sound.start >= end) - (sound.end <= start)] for sound in told]

    def _checked(self, sounds: list[Segment], value: bool) -> tuple[float, float] | None:
        """An interval with one of `sounds`, or with none of them if the claim is false.

        A false claim is about the time of another sound where it can be: hearing that anything
        sounds must not be enough for the verdict.
        """
        if value:
            return self._interval(sounds, ())
        others = [sound for sound in self.plan.sounds if sound not in sounds]
        busy = self._interval(others, sounds) if others else None
        if busy or self.rng.random() > KEEP_QUIET:
            return busy
        return self._interval((), self.plan.sounds)

    def _interval(self, holds, lacks) -> tuple[float, float] | None:
        """An interval of 1 to 3 s with one of `holds`, if any, and none of `lacks`; or None.

        Ends of other sounds are kept MARGIN away too, so that what is heard then is beyond doubt.
        """
        for _ in range(40):
            length = int(self.rng.integers(10, 31)) / 10
            start = int(self.rng.integers(0, round((CLIP_SECONDS - length) * 10) + 1)) / 10
            end = round(start + length, 1)
            if all(_plain(start, end, other) for other in self.plan.sounds):
                heard = [s for s in self.plan.sounds if s.start < end and s.end > start]
                held = not holds or any(sound in heard for sound in holds)
                if held and not any(sound in heard for sound in lacks):
                    return start, end
        return None


def _plain(start: float, end: float, sound: Segment) -> bool:
    """Shares at least 0.6 s with the sound, or keeps MARGIN away from it."""
    shared = min(end, sound.end) - max(start, sound.start)
    return shared >= 0.6 or shared <= -MARGIN


def ask(rng: np.random.Generator, plan: Plan, boxes, classes, split: str) -> tuple[Question, ...]:
    """All questions of one scene, drawn with `rng`."""
    return Asker(rng, plan, boxes, classes, split).all()

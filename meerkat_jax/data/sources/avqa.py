"""AVQA (Yang et al., ACM Multimedia 2022): questions with four answers about VGGSound's videos.

    avqa/
      train_qa.json            about 40,400 questions
      val_qa.json              about 16,900 questions; the data set has no other for testing
      frames/<video_name>.*    a still of each video, or
      videos/<video_name>.*    the ten seconds as a video
      audio/<video_name>.*     the sound, if it is not taken from the video

The files are those of github.com/AlyssaYoung/AVQA, folder `data/annotation`, whose loader
(preprocess/preprocess_text/datautils/avqa.py) reads them; its own folders are `video` and `audio`
(of .wav files), with the same names. Each file is an array of objects:

    id                  number of the question
    video_name          <YouTube id>_<start>: start in seconds with six digits, ten seconds long
    video_id            number of the video
    question_text       "What is the main source of sound in the video?"
    multi_choice        the answers; four, but the loader allows for fewer and for null among them
    answer              index of the right one, from 0
    question_relation   what it is about: "Sound", "View" or "Both"
    question_type       "Which", "Come From", "Happening", "Where", "Why", "Before Next", "When" or
                        "Used For"

Keys, types and example rows were checked against the loader and copies of the files; the two files
as a whole could not be had. Not confirmed: whether train and val have YouTube videos in common.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

from meerkat_jax.data.example import Question
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.reading import json_items, member, number, require, words
from meerkat_jax.data.sources.skips import RowError, Skips

FILES = {"train": "train_qa.json", "test": "val_qa.json"}
TYPES = ("which", "come from", "happening", "where", "why", "before next", "when", "used for")
RELATIONS = ("sound", "view", "both")

_NAME = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}")


class Asked(NamedTuple):
    """One row. `kind` as in "come_from"."""

    question: str
    choices: tuple[str, ...]
    answer: str
    kind: str
    relation: str


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each video of a split, with all its questions."""
    files = require(folder, *FILES.values())
    skips = Skips()
    entries = []
    for split, path in zip(FILES, files, strict=True):
        for video, asked in _read(path, skips).items():
            entries.append(_entry(split, video, list(asked.values()), options))
    return Plan(entries, tuple(files), skips)


def _read(path: Path, skips: Skips) -> dict[str, dict[tuple, Asked]]:
    """Video -> its questions, by their text and choices."""
    videos: dict[str, dict[tuple, Asked]] = {}
    for line, _, row in json_items(path):
        with skips.row(path, line):
            video, asked = _row(row)
            known = videos.setdefault(video, {})
            before = known.setdefault((asked.question, asked.choices), asked)
            if before is not asked:
                if before.answer != asked.answer:
                    raise RowError(
                        "question twice with other answers", f"{video}: {asked.question}"
                    )
                skips.drop("row twice")
    return videos


def _row(row: Any) -> tuple[str, Asked]:
    video = words(member(row, "video_name"), "video_name")
    if not _NAME.fullmatch(video):
        raise RowError("video_name is not <YouTube id>_<six digits>", f"{video[:80]!r}")
    question = words(member(row, "question_text"), "question_text")
    choices = _choices(member(row, "multi_choice"))
    index = number(member(row, "answer"), "answer", 0, len(choices) - 1)
    if index != int(index) or not choices[int(index)]:
        raise RowError("answer is not one of the choices", f"{index:g} of {choices}"[:120])
    kind = _one_of(member(row, "question_type"), "question_type", TYPES)
    relation = _one_of(member(row, "question_relation"), "question_relation", RELATIONS)
    answer = choices[int(index)]
    choices = tuple(filter(None, choices))
    return video, Asked(question, choices, answer, kind.replace(" ", "_"), relation)


def _choices(values: Any) -> list[str]:
    """The answers to choose from, "" in the place of one that is missing."""
    if not isinstance(values, list):
        raise RowError("multi_choice is not a list", f"{type(values).__name__}")
    missing = [value is None or (isinstance(value, str) and not value.strip()) for value in values]
    if len(values) - sum(missing) < 2:
        raise RowError("multi_choice has fewer than two answers", f"{len(values) - sum(missing)}")
    pairs = zip(values, missing, strict=True)
    return ["" if gone else words(value, "choice") for value, gone in pairs]


def _one_of(value: Any, what: str, known: tuple[str, ...]) -> str:
    found = words(value, what).lower()
    if found not in known:
        raise RowError(f"{what} is unknown", f"{found[:80]!r}, expected one of {', '.join(known)}")
    return found


def _entry(split: str, video: str, asked: list[Asked], options: Options) -> Entry:
    ident = f"avqa-{split}-{video}"
    rng = generator(options.seed, "avqa", ident)
    return Entry(
        id=ident,
        split=split,
        image=(Place("frames", video), Place("videos", video, options.seconds / 2)),
        audio=(Place("audio", video), Place("videos", video)),
        questions=tuple(_question(rng, split, one) for one in asked),
        keys=(f"video:{video[:11]}",),
    )


def _question(rng, split: str, one: Asked) -> Question:
    question = asking.choice(rng, split, one.question, one.choices, one.answer, one.kind)
    return dataclasses.replace(question, truth=question.truth | {"relation": one.relation})

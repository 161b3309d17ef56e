r"""MUSIC-AVQA (Li et al., CVPR 2022): questions about people making music, answered in a word.

    music_avqa/
      avqa-train.json          about 31,900 questions, 25,700 of them about real videos
      avqa-test.json           9,129 questions, 7,365 of them about real videos
      frames/<video_id>.*      a still of each video, or
      videos/<video_id>.*      the video, a minute long
      audio/<video_id>.*       its whole sound, if it is not taken from the video

The files are those of github.com/GeWu-Lab/MUSIC-AVQA, folder `data/json_update`; the older ones of
`data/json` have the same form and some questions twice, with two answers. Each file is an array of
objects (gewu-lab.github.io/MUSIC-AVQA explains them):

    video_id          eight digits for a real video; with letters before them ("va00003871",
                      "eva00001194") for a synthetic one
    question_id       number of the question
    type              a JSON list as a text: "[\"Audio-Visual\", \"Counting\"]"
    question_content  "Is the <Object> louder than the <Object>?": what is in <> is to be filled in,
                      from left to right, with
    templ_values      a JSON list as a text: "[\"guzheng\", \"piano\"]"; <LRer> ("What kind of
                      instrument is the <LRer> instrument?") takes "left" or "right" as it is
    question_deleted  a check code of the annotators, 0 in all rows, not read by the authors
    anser             the answer, so spelt: one of 42 such as "yes", "two", "acoustic_guitar"

Synthetic videos are made of the image of one and the sound of another, or of two beside each
other; they are left out, as in the counts that Meerkat gives (25.7K and 7.36K). avqa-val.json is
left out too. The authors divide the questions, not the videos: train, val and test have videos in
common (val and test 2,296), and an entry's key says so.

The sound is the middle ten seconds of the minute, the image its middle. Not confirmed: that every
video is a minute long (the authors' scripts take 60 s of each, at one image a second), and the
row count of train.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.reading import json_items, member, require, words
from meerkat_jax.data.sources.skips import RowError, Skips

FILES = {"train": "avqa-train.json", "test": "avqa-test.json"}
MIDDLE = 30.0  # of a minute
TYPES = {
    "audio": ("counting", "comparative"),
    "visual": ("counting", "location"),
    "audio-visual": ("existential", "counting", "location", "comparative", "temporal"),
}

_VIDEO = re.compile(r"[a-z]{0,3}[0-9]{8}")
_BLANK = re.compile(r"<[^<>]*>")


class Asked(NamedTuple):
    """One row. `kind` as in "audio-visual/counting"."""

    question: str
    answer: str
    kind: str


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each real video of a split, with all its questions."""
    files = require(folder, *FILES.values())
    skips = Skips()
    entries = []
    for split, path in zip(FILES, files, strict=True):
        for video, asked in _read(path, skips).items():
            entries.append(_entry(split, video, list(asked.values()), options))
    return Plan(entries, tuple(files), skips)


def _read(path: Path, skips: Skips) -> dict[str, dict[str, Asked]]:
    """Video -> its questions, by their text."""
    videos: dict[str, dict[str, Asked]] = {}
    for line, _, row in json_items(path):
        with skips.row(path, line):
            video = words(member(row, "video_id"), "video_id")
            if not _VIDEO.fullmatch(video):
                raise RowError("video_id is not of eight digits", f"{video[:80]!r}")
            if not video.isdigit():
                skips.drop("synthetic video")
                continue
            asked = _row(row)
            before = videos.setdefault(video, {}).setdefault(asked.question, asked)
            if before is not asked:
                if before.answer != asked.answer:
                    raise RowError(
                        "question twice with other answers", f"{video}: {asked.question}"
                    )
                skips.drop("row twice")
    return videos


def _row(row: Any) -> Asked:
    content = words(member(row, "question_content"), "question_content")
    question = _filled(content, _listed(member(row, "templ_values"), "templ_values"))
    kind = [part.lower() for part in _listed(member(row, "type"), "type")]
    if len(kind) != 2 or kind[1] not in TYPES.get(kind[0], ()):
        raise RowError("type is unknown", f"{kind}"[:80])
    return Asked(question, _plain(member(row, "anser"), "anser"), "/".join(kind))


def _listed(value: Any, what: str) -> list[str]:
    """The texts of a JSON list that is itself written as a text."""
    text = words(value, what)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise RowError(f"{what} is not a list written as JSON", f"{text[:80]!r}")
    return [_plain(one, what) for one in values]


def _filled(content: str, values: list[str]) -> str:
    """The question with `values` in its blanks."""
    parts = _BLANK.split(content)
    if len(parts) != len(values) + 1:
        raise RowError(
            "another number of templ_values than of blanks", f"{content[:80]!r}, {values}"
        )
    question = "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))
    return question.replace("\uff1f", "?")  # two of the templates end in a full-width mark


def _plain(value: Any, what: str) -> str:
    return words(words(value, what).replace("_", " "), what)


def _entry(split: str, video: str, asked: list[Asked], options: Options) -> Entry:
    ident = f"music_avqa-{split}-{video}"
    rng = generator(options.seed, "music_avqa", ident)
    begin = max(0.0, MIDDLE - options.seconds / 2)
    return Entry(
        id=ident,
        split=split,
        image=(Place("frames", video), Place("videos", video, MIDDLE)),
        audio=(Place("audio", video, begin), Place("videos", video, begin)),
        questions=tuple(asking.word(rng, split, *one) for one in asked),
        keys=(f"music_avqa:{video}",),
    )

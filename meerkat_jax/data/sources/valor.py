"""VALOR-32K (Liu et al., TPAMI 2024): captions of what is seen and heard in videos of AudioSet.

    valor/
      desc_train.json          25,327 videos
      desc_test.json           3,491 videos
      frames/<video_id>.*      a still of each video, or
      videos/<video_id>.*      the clip as a video
      audio/<video_id>.*       the sound, if it is not taken from the video

The files are in VALOR-32K-annotations.zip of casia-iva-group.github.io/projects/VALOR (links are
also in github.com/TXH-mercury/VALOR); they were read as copied in
github.com/videoa11ygpt/VideoA11yGPT, folder `assets/VALOR32K`. Each is an array of objects:

    video_id   <YouTube id>_<start>_<end>: seconds of the video on YouTube with three decimals, ten
               apart, or fewer in one of a hundred
    desc       the caption, one sentence or more

The files have one caption of each video; should a video come again, its captions are the
references of one question. Where a start has a fraction, the caption is lost: "200", "700". Such
rows, five of train and two of test, are faults. desc_val.json is left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.reading import interval, json_items, member, require, words
from meerkat_jax.data.sources.skips import RowError, Skips

FILES = {"train": "desc_train.json", "test": "desc_test.json"}

_ID = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]+(?:\.[0-9]+)?)_([0-9]+(?:\.[0-9]+)?)")


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each video, with all its captions."""
    files = require(folder, *FILES.values())
    skips = Skips()
    entries = []
    for split, path in zip(FILES, files, strict=True):
        for video, captions in _read(path, skips).items():
            entries.append(_entry(split, video, captions, options))
    return Plan(entries, tuple(files), skips)


def _read(path: Path, skips: Skips) -> dict[str, list[str]]:
    """Video -> its captions."""
    videos: dict[str, list[str]] = {}
    for line, _, row in json_items(path):
        with skips.row(path, line):
            video, caption = _row(row)
            captions = videos.setdefault(video, [])
            if caption in captions:
                skips.drop("row twice")
            else:
                captions.append(caption)
    return videos


def _row(row: Any) -> tuple[str, str]:
    video = words(member(row, "video_id"), "video_id")
    _span(video)
    caption = words(member(row, "desc"), "desc")
    if not any(map(str.isalpha, caption)):
        raise RowError("desc has no words", f"{video}: {caption[:80]!r}")
    return video, caption


def _span(video: str) -> tuple[float, float]:
    """Where the clip begins and ends in its video on YouTube."""
    parts = _ID.fullmatch(video)
    if not parts:
        raise RowError("video_id is not <YouTube id>_<start>_<end>", f"{video[:80]!r}")
    return interval(parts[2], parts[3], "clip")


def _entry(split: str, video: str, captions: list[str], options: Options) -> Entry:
    ident = f"valor-{split}-{video}"
    start, end = _span(video)
    middle = min(end - start, options.seconds) / 2
    question = asking.avc(generator(options.seed, "valor", ident), split, captions)
    return Entry(
        id=ident,
        split=split,
        image=(Place("frames", video), Place("videos", video, middle)),
        audio=(Place("audio", video), Place("videos", video)),
        questions=(question,),
        keys=(f"video:{video[:11]}",),
    )

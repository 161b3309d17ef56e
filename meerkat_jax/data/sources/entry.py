"""What a source plans from its annotation files alone: which media, and what is asked of them.

A source is a module with a function `plan(folder, options) -> Plan`. It reads annotation files and
touches no media, so planning three million examples takes minutes; `data/build` then looks up
the files, cuts, encodes and writes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from meerkat_jax.data.example import Box, Question
from meerkat_jax.data.sources.skips import Skips


class Place(NamedTuple):
    """A file below the source folder, named without its suffix, and a moment in it.

    `at`, in seconds: the frame of a video that is shown, or where a clip of sound begins. An image
    file has no moments. `suffix` where only one will do; else any of the right kind.
    """

    folder: str
    name: str
    at: float = 0.0
    suffix: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example to be made. Fields as of `Example`, the media as the places where they may lie.

    Of each medium the first place that is there is used. `keys` say what must not be in two splits:
    "image:<id>", "video:<YouTube id>", and whatever else tells that two examples share media.
    `seconds` is how long the sound must be for the annotation to make sense (the last annotated
    time); a shorter one is skipped.

    Which image boxes are of where it has an EXIF turn: as it is `stored`, or else upright. Where
    `sizes`, (width, height), say of what image they were told, those decide.
    """

    id: str
    split: str
    image: tuple[Place, ...]
    audio: tuple[Place, ...]
    questions: tuple[Question, ...]
    keys: tuple[str, ...]
    image_labels: tuple[str, ...] = ()
    audio_labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    matched: bool = True
    seconds: float = 0.0
    stored: bool = False
    sizes: tuple[tuple[float, float], ...] = ()

    @property
    def claims_audio(self) -> bool:
        """Whether silence would make it wrong."""
        asked = (one.segments or (one.task == "arig" and one.boxes) for one in self.questions)
        return bool(self.audio_labels) or any(asked)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a plan depends on beside its files.

    seed: of every draw. cap: the most examples of a class in one split of joined pairs (0: no
    limit). seconds: the length of clips.
    """

    seed: int = 0
    cap: int = 0
    seconds: float = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """All examples of a source, by number; the same files and options give the same ones.

    `files` are the annotation files that were read; `skips` counts rows that could not be used.
    """

    entries: Sequence[Entry]
    files: tuple[Path, ...]
    skips: Skips


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone, as in ("ask", entry id)."""
    words = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(words[:16], "little"))

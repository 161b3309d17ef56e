"""Clips of sound with what is heard in them, as compact tables for joining with images."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from meerkat_jax.data.example import Segment
from meerkat_jax.data.sources.skips import RowError, Skips

SPLITS = ("train", "test")
CLIP_SECONDS = 10.0  # of AudioSet and VGGSound; some annotations end a little later


@dataclasses.dataclass(frozen=True)
class Event:
    """A class that is heard at a time: its number, and seconds from the clip's beginning."""

    kind: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class AudioClips:
    """S clips, C classes.

    ids bytes[S], YouTube ids; starts float64[S], seconds into the video; splits uint8[S], indices
    of `SPLITS`; heard bool[S, C]; maybe bool[S, C], heard or not to be ruled out; events, of strong
    labels alone: for each clip what is heard when.
    """

    ids: np.ndarray
    starts: np.ndarray
    splits: np.ndarray
    audio_labels: np.ndarray
    maybe: np.ndarray
    events: Sequence[tuple[Event, ...]] = ()

    def split(self, name: str) -> np.ndarray:
        """bool[S], which clips are of our split `name`."""
        return self.splits == SPLITS.index(name)

    def spans(self, audio: int, kind: int, label: str) -> list[Segment]:
        """When a class is heard in a clip, in order; what overlaps or touches is one stretch."""
        return merged(
            [Segment(label, e.start, e.end) for e in self.events[audio] if e.kind == kind]
        )


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """In order of time, those that overlap or touch as one."""
    found: list[Segment] = []
    for one in sorted(segments, key=lambda segment: (segment.start, segment.end)):
        if found and one.start <= found[-1].end:
            found[-1] = dataclasses.replace(found[-1], end=max(found[-1].end, one.end))
        else:
            found.append(one)
    return found


class AudioRows:
    """Clips as they are read. Classes heard are given as bits of a plain integer."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, float], tuple[int, Any]] = {}  # clip -> its split and labels
        self.ids: list[bytes] = []
        self.starts, self.splits = array.array("d"), array.array("B")
        self.audio_labels: list[int] = []
        self.maybe: list[int] = []

    def add(
        self, ident: str, start: float, split: str, said: Any, heard: int, maybe: int, skips: Skips
    ) -> None:
        """Add one clip; `said` are its labels in the file.

        Clips without any of our classes are left out. RowError when an earlier row of the file gave
        the clip other labels.
        """
        number = SPLITS.index(split)
        before = self.known.setdefault((ident, start), (number, said))
        if before[0] != number:
            raise RowError("clip in two splits", ident)
        if before[1] is not said:
            if before[1] != said:
                raise RowError("clip twice with other labels", ident)
            skips.drop("row twice")
            return
        if not maybe:
            return
        self.ids.append(ident.encode())
        self.starts.append(start)
        self.splits.append(number)
        self.audio_labels.append(heard)
        self.maybe.append(maybe)

    def gathered(self, count: int, events: Sequence[tuple[Event, ...]] = ()) -> AudioClips:
        """The table, for `count` classes."""
        return AudioClips(
            ids=np.array(self.ids),
            starts=np.array(self.starts),
            splits=np.array(self.splits, np.uint8),
            audio_labels=_bits(self.audio_labels, count),
            maybe=_bits(self.maybe, count),
            events=events,
        )


def _bits(values: Sequence[int], count: int) -> np.ndarray:
    """Integers -> bool[len(values), count]."""
    width = -(-count // 8)
    raw = b"".join(value.to_bytes(width, "little") for value in values)
    rows = np.frombuffer(raw, np.uint8).reshape(len(values), width)
    return np.unpackbits(rows, axis=1, count=count, bitorder="little").astype(bool)

"""What is asked about one pair of an OpenImages picture and a clip: grounding, and fact checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.audio_clips import CLIP_SECONDS, AudioClips, merged
from meerkat_jax.data.sources.openimages import Images

MARGIN = 0.3  # seconds between a claimed time and a sound that it must not hold
SHORTEST, LONGEST = 1.0, 3.0  # seconds of a claimed time


class Claims:
    """Writes the questions of one pair. Class numbers `seen` and `heard` are in order."""

    def __init__(
        self,
        rng: np.random.Generator,
        split: str,
        labels: Sequence[str],
        images: Images,
        audio_clips: AudioClips,
        image: int,
        audio: int,
    ) -> None:
        self.rng, self.split, self.labels = rng, split, labels
        self.images, self.audio_clips, self.image, self.audio = images, audio_clips, image, audio
        self.image_labels = [int(kind) for kind in np.flatnonzero(images.image_labels[image])]
        self.audio_labels = [int(kind) for kind in np.flatnonzero(audio_clips.audio_labels[audio])]
        self.both = [kind for kind in self.image_labels if kind in self.audio_labels]

    def boxes(self, kind: int) -> list[Box]:
        """The boxes of a class."""
        return self.images.boxes_of(self.image, kind, self.labels[kind])

    def spans(self, kinds: Iterable[int]) -> list[Segment]:
        """When these classes are heard, by time."""
        found = [
            s for kind in kinds for s in self.audio_clips.spans(self.audio, kind, self.labels[kind])
        ]
        return sorted(found, key=lambda segment: (segment.start, segment.end))

    def questions(
        self, kind: int, task: int, negative: str | None, other: int
    ) -> tuple[Question, ...]:
        """Those of a planned row; fields as of `pairs.Row`."""
        if negative in ("class", "sibling"):
            return (self.mismatched(kind, task, negative),)
        found = [self.grounding(task), self.true(kind, task)]
        if negative == "box":
            found.append(self.other_box(kind, task, other))
        elif negative == "interval":
            found.append(self.quiet(kind, task))
        return tuple(found)

    def grounding(self, task: int) -> Question:
        """Where, or when, all that is seen and heard is."""
        if task <= 2:
            boxes = [box for kind in self.both for box in self.boxes(kind)]
            return asking.arig(self.rng, self.split, boxes)
        return asking.igatl(self.rng, self.split, self.spans(self.both))

    def true(self, kind: int, task: int) -> Question:
        """A claim that holds."""
        about = self._sight(kind, task)
        interval = self._during([kind]) if task >= 3 else None
        return self._claim(task, True, f"{about}. {self._hearing(interval)}", kind, interval)

    def mismatched(self, kind: int, task: int, negative: str) -> Question:
        """A claim about a clip of something else; the time, if any, is when that sounds."""
        interval = self._during(self.audio_labels) if task >= 3 else None
        reason = f"{self._sight(kind, task)}. {self._hearing(interval)}"
        return self._claim(task, False, reason, kind, interval, negative)

    def other_box(self, kind: int, task: int, other: int) -> Question:
        """A claim about the box of something that is not heard."""
        interval = self._during([kind]) if task >= 3 else None
        reason = f"{self._sight(other, task)}. {self._hearing(interval)}"
        return self._claim(task, False, reason, other, interval, "box")

    def quiet(self, kind: int, task: int) -> Question:
        """A claim about a time at which what is seen is silent."""
        kinds = [kind] if task == 3 else self.both
        interval = self._within(gaps(self.spans(kinds)))
        reason = f"{self._sight(kind, task)}. {self._hearing(interval)}"
        return self._claim(task, False, reason, kind, interval, "interval")

    def _claim(self, task, value, reason, kind, interval, negative=None) -> Question:
        box = None
        if task in (1, 3):
            boxes = self.boxes(kind)
            box = boxes[int(self.rng.integers(len(boxes)))]
        return asking.avfact(
            self.rng, self.split, f"avfact{task}", value, reason, box, interval, negative
        )

    def _sight(self, kind: int, task: int) -> str:
        if task in (1, 3):
            return f"The box holds {asking.one(self.labels[kind])}"
        return f"I see {asking.listed(self.labels[kind] for kind in self.image_labels)}"

    def _hearing(self, interval: tuple[float, float] | None) -> str:
        """What is heard, in the time of the claim if it has one."""
        if interval is None:
            return f"I hear {asking.listed(self.labels[kind] for kind in self.audio_labels)}"
        start, end = interval
        heard = [
            kind
            for kind in self.audio_labels
            if any(s.start < end and s.end > start for s in self.spans([kind]))
        ]
        return f"I hear {asking.listed(self.labels[kind] for kind in heard)} in that time"

    def _during(self, kinds: Sequence[int]) -> tuple[float, float]:
        """A time for at least half of which one of `kinds` sounds, or for as long as it does."""
        spans = self.spans(kinds)
        span = spans[int(self.rng.integers(len(spans)))]
        length = self.rng.uniform(SHORTEST, LONGEST)
        shared = min(length / 2, span.end - span.start)
        low = max(0.0, span.start - length + shared)
        high = min(CLIP_SECONDS - length, span.end - shared)
        start = round(float(self.rng.uniform(min(low, high), max(low, high))), 1)
        return start, round(min(start + length, CLIP_SECONDS), 1)

    def _within(self, times: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """A time inside one of `times`."""
        begin, stop = times[int(self.rng.integers(len(times)))]
        length = self.rng.uniform(SHORTEST, min(LONGEST, stop - begin))
        start = round(float(self.rng.uniform(begin, stop - length)), 1)
        return start, round(min(start + length, stop), 1)


def gaps(spans: Sequence[Segment]) -> list[tuple[float, float]]:
    """Times without any of `spans`, MARGIN away from each, that a claim can be about."""
    found, begin = [], 0.0
    for span in merged([Segment("", s.start, s.end) for s in spans]):
        found.append((begin, span.start - MARGIN))
        begin = span.end + MARGIN
    found.append((begin, CLIP_SECONDS))
    return [(start, end) for start, end in found if end - start >= SHORTEST + 0.1]

"""An answer: its text, and the boxes, segments and verdict parsed from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.text import parse_boxes, parse_segments
from meerkat_jax.data.verdict import parse_verdict


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What the model was given and how it related image and audio.

    image uint8[H, W, 3] as the tower sees it; logmel float[F, mels] in dB; attention float[h, w],
    the audio's on the image (AVACE); plan float[V, A] (AVOpT), V = h*w row by row, A = freq*time;
    grid (h, w, freq, time); seconds, the length of what is heard.
    """

    image: np.ndarray
    logmel: np.ndarray
    attention: np.ndarray
    plan: np.ndarray
    grid: tuple[int, int, int, int]
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """An answer as the model wrote it, and what can be read in it.

    boxes have corners in 0..1 of the image's width and height, segments are in seconds; verdict
    is what the text says of a claim (True or False, Yes or No), None when it says neither or both;
    `mended` of the boxes and segments were not in the exact form. `notes` are for people: what was
    wrong with the input (an audio clip that is too long, silent or absent) or with the answer.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    segments: tuple[Segment, ...] = ()
    verdict: bool | None = None
    notes: tuple[str, ...] = ()
    mended: int = 0
    view: View | None = dataclasses.field(default=None, repr=False)

    @property
    def attention(self) -> np.ndarray | None:
        """float[h, w]: where in the image the audio draws attention (AVACE's map)."""
        return None if self.view is None else self.view.attention

    def to_json(self) -> dict[str, Any]:
        """All but the view, as plain JSON values."""
        return {
            "text": self.text,
            "boxes": [dataclasses.asdict(box) for box in self.boxes],
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "verdict": self.verdict,
            "notes": list(self.notes),
        }


def read_answer(
    text: str, seconds: float, notes: tuple[str, ...] = (), view: View | None = None
) -> Answer:
    """Find boxes, segments (within 0..`seconds`) and the verdict in `text`; never raises."""
    boxes, segments = parse_boxes(text), parse_segments(text, seconds)
    return Answer(
        text=text,
        boxes=boxes.items,
        segments=segments.items,
        verdict=parse_verdict(text),
        notes=notes,
        mended=boxes.mended + segments.mended,
        view=view,
    )

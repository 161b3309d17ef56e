"""The record that every source is converted to: an image, an audio clip, and questions.

An image-sound pair is stored once with all questions about it, because they share the prefix of
image and audio tokens that is most of a sequence. Serialised as msgpack: bytes stay bytes,
nothing is executed on reading.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack

from meerkat_jax.core.errors import UserError

TASKS = ("arig", "igatl", "avfact1", "avfact2", "avfact3", "avfact4", "avqa", "avc")


@dataclasses.dataclass(frozen=True)
class Box:
    """A labelled box; corners in 0..1 of the image's width and height."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """A labelled time segment; seconds from the beginning of the clip."""

    label: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Question:
    """One instruction and its answer. `truth` holds what the evaluator needs beside `response`.

    truth keys: `kind` (the AVQA question type, or the task), `answer` (verdict bool, word or
    number), `references` (captions), `seen` and `heard` (class names), `baseline` (answers that use
    one modality only, by name).
    """

    task: str
    instruction: str
    response: str
    boxes: tuple[Box, ...] = ()
    segments: tuple[Segment, ...] = ()
    truth: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Example:
    """A pair of image and audio: encoded media, labels, and the questions.

    `boxes` are of what sounds and is seen (where AVACE's attention belongs; empty: left out of that
    loss). `matched` says whether image and audio go together (False: left out of AVOpT's loss).
    """

    id: str
    source: str
    split: str
    image: bytes
    audio: bytes
    questions: tuple[Question, ...]
    image_labels: tuple[str, ...] = ()
    audio_labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    matched: bool = True


def to_bytes(example: Example) -> bytes:
    """Serialise one record."""
    return msgpack.packb(example, default=_fields)


def _fields(record: Any) -> dict[str, Any]:
    """One level of a record: `dataclasses.asdict` would copy everything below it."""
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{record!r} is not part of an example record")
    return vars(record)


def from_bytes(record: bytes) -> Example:
    """Read one record; UserError when it is not one of ours."""
    try:
        fields = msgpack.unpackb(record)
        fields["questions"] = tuple(_question(q) for q in fields["questions"])
        fields["boxes"] = tuple(Box(**b) for b in fields["boxes"])
        for key in ("image_labels", "audio_labels"):
            fields[key] = tuple(fields[key])
        return Example(**fields)
    except (ValueError, TypeError, KeyError, msgpack.exceptions.ExtraData) as error:
        raise UserError(f"not an example record ({error}); rebuild the data set") from error


def _question(fields: dict[str, Any]) -> Question:
    fields["boxes"] = tuple(Box(**b) for b in fields["boxes"])
    fields["segments"] = tuple(Segment(**s) for s in fields["segments"])
    return Question(**fields)

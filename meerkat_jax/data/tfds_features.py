"""An example as TensorFlow Datasets stores it: what is in which feature, and the other way round.

Without TensorFlow TFDS can neither write lists within lists nor sounds of its own kind. So boxes
and segments of all questions are tables beside the questions, which say whose each row is, and a
sound is the bytes of its file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from meerkat_jax.data.example import Box, Example, Segment


def features() -> tfds.features.FeaturesDict:
    """Of a record; corners in 0 to 1 of the image, as x0, y0, x1, y1, times in seconds."""
    of = tfds.features
    whose = of.Sequence(np.int32, doc="index of the question")
    return of.FeaturesDict(
        {
            "id": of.Text(),
            "source": of.Text(),
            "split": of.Text(),
            "image": of.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "audio": of.Scalar(np.object_, doc="a mono file at 48 kHz: FLAC or Opus"),
            "questions": of.Sequence(
                {
                    "task": of.Text(),
                    "instruction": of.Text(),
                    "response": of.Text(),
                    "truth": of.Text(doc="JSON"),
                }
            ),
            "question_boxes": {"question": whose, **_boxes()},
            "question_segments": {
                "question": whose,
                "label": of.Sequence(of.Text()),
                "times": of.Tensor(shape=(None, 2), dtype=np.float32, doc="start, end"),
            },
            "image_labels": of.Sequence(of.Text()),
            "audio_labels": of.Sequence(of.Text()),
            "boxes": of.FeaturesDict(_boxes(), doc="of what is both seen and heard"),
            "matched": of.Scalar(np.bool_, doc="whether image and audio go together"),
        }
    )


def _boxes() -> dict[str, Any]:
    corners = tfds.features.Tensor(shape=(None, 4), dtype=np.float32, doc="x0, y0, x1, y1")
    return {"label": tfds.features.Sequence(tfds.features.Text()), "corners": corners}


def to_record(example: Example) -> dict[str, Any]:
    """The record of an example, for `features`."""
    boxes = [(i, box) for i, q in enumerate(example.questions) for box in q.boxes]
    segments = [(i, segment) for i, q in enumerate(example.questions) for segment in q.segments]
    return {
        "id": example.id,
        "source": example.source,
        "split": example.split,
        "image": example.image,
        "audio": example.audio,
        "questions": [
            {
                "task": question.task,
                "instruction": question.instruction,
                "response": question.response,
                "truth": json.dumps(question.truth, ensure_ascii=False),
            }
            for question in example.questions
        ],
        "question_boxes": {"question": [i for i, _ in boxes], **_table([b for _, b in boxes])},
        "question_segments": {
            "question": [i for i, _ in segments],
            "label": [segment.label for _, segment in segments],
            "times": _rows([_times(segment) for _, segment in segments], 2),
        },
        "image_labels": list(example.image_labels),
        "audio_labels": list(example.audio_labels),
        "boxes": _table(example.boxes),
        "matched": example.matched,
    }


def _table(boxes: Sequence[Box]) -> dict[str, Any]:
    corners = [(box.x0, box.y0, box.x1, box.y1) for box in boxes]
    return {"label": [box.label for box in boxes], "corners": _rows(corners, 4)}


def _times(segment: Segment) -> tuple[float, float]:
    return segment.start, segment.end


def _rows(rows: Sequence[tuple[float, ...]], width: int) -> np.ndarray:
    """float32[n, width], with n = 0 too."""
    return np.array(rows, np.float32).reshape(-1, width)

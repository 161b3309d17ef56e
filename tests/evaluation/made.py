"""Questions and what is drawn of them, made by hand."""

import io

import numpy as np
import soundfile

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.evaluation.benchmark import Answered
from meerkat_jax.report.cards import Shown


def shown(task="arig", text="[dog, 0.1, 0.1, 0.5, 0.5]", name="dog", **question):
    """An answer to a scene with one dog in it, which sounds twice; the media are noise."""
    box, segment = Box(name, 0.1, 0.1, 0.5, 0.5), Segment(name, 1.0, 3.0)
    truth = {
        "kind": task,
        "answer": True,
        "image_labels": [name],
        "audio_labels": [name],
        "objects": [[name, 0.1, 0.1, 0.5, 0.5]],
        "sounds": [[name, 1.0, 3.0], [name, 2.0, 4.0]],
    }
    boxes = (box,) if task == "arig" else ()
    segments = (segment,) if task == "igatl" else ()
    fields = {"instruction": "Where is it?", "response": "there"} | question
    record = Answered(
        "mini/1",
        "compositions",
        Question(task=task, boxes=boxes, segments=segments, truth=truth, **fields),
        text,
    )
    rng = np.random.default_rng(0)
    clip = io.BytesIO()
    soundfile.write(clip, np.zeros(800), 8000, format="FLAC")
    return Shown(
        record,
        image=rng.integers(0, 255, (60, 80, 3), dtype=np.uint8),
        logmel=rng.normal(size=(101, 64)).astype(np.float32),
        attention=rng.random((6, 8)),
        plan=rng.random((48, 2 * 10)),
        grid=(6, 8, 2, 10),
        audio_bytes=clip.getvalue(),
    )

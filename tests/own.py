"""Own data as a test has it: scenes of the mini data set laid out as docs/own_data.md tells.

python -m meerkat_jax.train --config=tests/own.py:FOLDER,mini --workdir=DIR --data_dir=CACHE
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_collections

from meerkat_jax.core.config import load_config, settable
from meerkat_jax.data.example import Example, Question
from meerkat_jax.mini.build import MiniConfig, instances, scene
from meerkat_jax.mini.media import load_media
from tests.tiny import AVFIT, shrunk

COUNT = 48  # scenes, of which the last eight are a test split


def get_config(arg: str) -> ml_collections.ConfigDict:
    """`experiments/forkme.py` with little of nearly everything."""
    config = load_config(f"{AVFIT.with_name('forkme.py')}:{arg}").to_dict()
    return settable(shrunk(config))


def write_own(folder: Path, count: int = COUNT, test: int = 8, media: str = "procedural") -> Path:
    """A folder of images, sounds and annotations.jsonl; gives it."""
    config = MiniConfig(media=media, classes=8)
    things = instances(config, load_media(media), "train")
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        one = scene(config, things, "train", number)
        (folder / f"{number}.jpg").write_bytes(one.image)
        (folder / f"{number}.wav").write_bytes(one.audio)
        row = {"id": f"scene{number}", "image": f"{number}.jpg", "audio": f"{number}.wav"}
        row |= {"split": "test" if number >= count - test else "train", "matched": one.matched}
        lines.append(json.dumps(row | _said(one)))
    (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _said(one: Example) -> dict:
    """What a person would write of a scene: what is seen and heard, and some questions."""
    boxes = [[b.label, b.x0, b.y0, b.x1, b.y1] for b in one.boxes]
    return {
        "image_labels": list(one.image_labels),
        "audio_labels": list(one.audio_labels),
        "boxes": boxes,
        "questions": [row for q in one.questions if (row := _asked(q))],
    }


def _asked(question: Question) -> dict | None:
    if question.task == "arig":
        return {
            "task": "arig",
            "boxes": [[b.label, b.x0, b.y0, b.x1, b.y1] for b in question.boxes],
        }
    if question.task == "igatl":
        times = [[s.label, s.start, s.end] for s in question.segments]
        return {"task": "igatl", "segments": times}
    if question.task == "avfact2":
        return {"task": "avfact2", "answer": question.truth["answer"]}
    if question.task == "avc":
        return {"task": "avc", "captions": [question.response]}
    if question.task == "avqa":
        said = {"instruction": question.instruction, "answer": question.response}
        return {"task": "avqa"} | said
    return None

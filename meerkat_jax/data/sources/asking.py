"""The questions of the paper's tasks about real media, each with its answer and its truth.

A source says what is seen and heard, and where and when; here it becomes an instruction in one of
many wordings (`data/paraphrases.py`), an answer in the text form of boxes and times, and the truth
that the evaluator reads. Every written answer is checked to read back as what it says.

An answer to a fact check gives its reason first and the verdict last, as on the mini data set
(meerkat_jax/mini/NOTES.md). Fact checks are a 2 x 2 of {box, image} x {whole clip, interval}:

    avfact1  box, clip           avfact2  picture, clip
    avfact3  box, interval       avfact4  picture, interval
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.paraphrases import PARAPHRASES
from meerkat_jax.data.text import check_response, write_box, write_segment


def phrase(rng: np.random.Generator, kind: str, split: str, **fields: str) -> str:
    """An instruction of `kind` in a wording drawn from those of training, or of testing."""
    wordings = PARAPHRASES[kind]["train" if split == "train" else "test"]
    return wordings[int(rng.integers(len(wordings)))].format(**fields)


def arig(rng: np.random.Generator, split: str, boxes: Sequence[Box]) -> Question:
    """Audio-referred image grounding: the boxes of what makes the sound, at least one."""
    response = " ".join(map(write_box, boxes))
    truth = {"kind": "arig", "answer": None, "objects": _listed(boxes)}
    return _checked("arig", phrase(rng, "arig", split), response, tuple(boxes), (), truth)


def igatl(rng: np.random.Generator, split: str, segments: Sequence[Segment]) -> Question:
    """Image-guided temporal localisation: when what is seen is heard, at least one segment."""
    response = " ".join(map(write_segment, segments))
    truth = {"kind": "igatl", "answer": None, "sounds": _listed(segments)}
    return _checked("igatl", phrase(rng, "igatl", split), response, (), tuple(segments), truth)


def avfact(
    rng: np.random.Generator,
    split: str,
    task: str,
    value: bool,
    reason: str,
    box: Box | None = None,
    interval: tuple[float, float] | None = None,
    negative: str | None = None,
) -> Question:
    """A claim that is true or false, its `reason` a sentence without its full stop.

    task: avfact1 to avfact4; 1 and 3 are about `box`, 3 and 4 about `interval` in seconds. negative
    is what makes a false claim false: "class", "sibling", "interval" or "box".
    """
    given = {}
    truth = {"kind": task, "answer": value}
    if box is not None:  # without its label: the question must not give the name away
        given["box"] = "[" + write_box(Box("x", box.x0, box.y0, box.x1, box.y1)).split(", ", 1)[1]
        truth["objects"] = _listed([box])
    if interval is not None:
        given |= {"start": f"{interval[0]:.1f}", "end": f"{interval[1]:.1f}"}
        truth["interval"] = list(interval)
    if negative:
        truth["negative"] = negative
    text = phrase(rng, task, split, **given)
    return _checked(task, text, f"{reason}: {value}.", (), (), truth)


def choice(
    rng: np.random.Generator,
    split: str,
    question: str,
    choices: Sequence[str],
    answer: str,
    kind: str,
) -> Question:
    """A published question with the answers to choose from; `answer` is one of `choices`."""
    text = phrase(rng, "choice", split, question=_ended(question), choices=", ".join(choices))
    truth = {"kind": kind, "answer": answer, "choices": list(choices)}
    return _checked("avqa", text, answer, (), (), truth)


def word(rng: np.random.Generator, split: str, question: str, answer: str, kind: str) -> Question:
    """A published question whose answer is a word or two."""
    text = phrase(rng, "word", split, question=_ended(question))
    return _checked("avqa", text, answer, (), (), {"kind": kind, "answer": answer})


def avc(rng: np.random.Generator, split: str, captions: Sequence[str]) -> Question:
    """A caption; the first of `captions` is the answer, all are references."""
    text = phrase(rng, "avc", split)
    truth = {"kind": "avc", "answer": None, "references": list(captions)}
    return _checked("avc", text, captions[0], (), (), truth)


def one(label: str) -> str:
    """A thing with its article: "a dog", "an owl"."""
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def listed(labels: Iterable[str]) -> str:
    """("dog", "owl", "cat") -> "a dog, an owl and a cat"; nothing -> "nothing"."""
    things = [one(label) for label in labels]
    if not things:
        return "nothing"
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _listed(items: Sequence[Box | Segment]) -> list[list]:
    return [list(vars(item).values()) for item in items]


def _ended(question: str) -> str:
    return question if question[-1] in "?.!" else f"{question}?"


def _checked(task, instruction, response, boxes, segments, truth) -> Question:
    question = Question(task, instruction, response, boxes, segments, truth)
    if task in ("arig", "igatl"):
        check_response(question)
    return question

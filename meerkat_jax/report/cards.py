"""One answered question as a card: the words, the image with boxes, the sound, what aligns both.

All text that comes from data is escaped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

import numpy as np

from meerkat_jax.data.example import Segment
from meerkat_jax.data.text import parse_boxes, parse_segments
from meerkat_jax.evaluation.benchmark import Answered, Judged, judge
from meerkat_jax.report import figures, tables


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """One answered question with what is needed to draw it.

    image uint8[H,W,3]; logmel float[F,64] in dB; attention float[h,w] (AVACE's map); plan
    float[V,A] (AVOpT's; V = h*w row by row, A = freq*time); grid (h, w, freq, time) of the plan;
    audio_bytes an encoded WAV, OGG or FLAC clip; seconds the length of the clip; chance the
    probability of True that the model gave a claim.
    """

    answered: Answered
    image: np.ndarray
    logmel: np.ndarray
    attention: np.ndarray | None = None
    plan: np.ndarray | None = None
    grid: tuple[int, int, int, int] | None = None
    audio_bytes: bytes | None = None
    seconds: float = 10.0
    chance: float | None = None


_WORDS = {"right": "Right", "wrong": "Wrong", "free": "In its own words"}


def card(shown: Shown, names: frozenset[str]) -> str:
    """HTML of one example; `names` are class names to look for in its answer."""
    answered, question = shown.answered, shown.answered.question
    verdict = judge(answered, names)
    state = {True: "right", False: "wrong", None: "free"}[verdict.right]
    kind = question.truth.get("kind")
    kind = f", {kind}" if kind and kind != question.task else ""
    split = tables.split_words(answered.split)[0]
    rows = {"Question": question.instruction, "Answer": answered.text}
    rows["Expected"] = question.response
    body = "".join(f"<dt>{k}</dt><dd>{escape(str(v))}</dd>" for k, v in rows.items())
    return (
        f'<article class="card {state}"><header><span class="badge {state}">{_mark(state)}'
        f"{_WORDS[state]}</span>"
        f"<span>{escape(_measure(shown, verdict))}</span>"
        f'<span class="where">{escape(f"{question.task}{kind} · {split} · {answered.example_id}")}'
        f'</span></header><dl class="talk {state}">{body}</dl>'
        f'<div class="figures">{_images(shown)}{_audio(shown)}</div></article>'
    )


def _mark(state: str) -> str:
    marks = {"right": "M2 7l3.5 3.5L12 3", "wrong": "M3 3l8 8M11 3l-8 8", "free": "M2 7h10"}
    path = marks[state]
    return f'<svg viewBox="0 0 14 14" aria-hidden="true"><path d="{path}"/></svg>'


def _measure(shown: Shown, verdict: Judged) -> str:
    question = shown.answered.question
    if not verdict.parsed:
        return "could not be read"
    if shown.chance is not None:
        return f"probability of True against False {shown.chance:.3f}"
    if question.task == "arig":
        overlap = f"{verdict.scores['mean_iou']:.3f}"
        if len(question.boxes) > 1:  # cIoU takes their areas as one, and asks for no names
            return f"mean overlap with the true boxes (IoU) {overlap}; their joint area is judged"
        return f"overlap with the true box (IoU) {overlap}; its name is not judged"
    if question.task == "igatl":
        return f"segment F1 {verdict.scores['segment_f1']:.2f}"
    return ""


def _images(shown: Shown) -> str:
    question = shown.answered.question
    boxes = [("true", box) for box in question.boxes]
    boxes += [("answer", box) for box in parse_boxes(shown.answered.text).items]
    boxes += [("asked", box) for box in parse_boxes(question.instruction).items]
    seen = _listed(question.truth.get("image_labels"))
    drawn = figures.image_figure(shown.image, boxes, f"Image of {seen}")
    parts = [_figure(drawn, f"In the image: {seen}")]
    if shown.attention is not None:
        drawn = figures.image_figure(
            shown.image, boxes, "Attention of the sound on the image", shown.attention
        )
        parts.append(_figure(drawn, "Where the sound draws attention (AVACE)"))
    return "".join(parts)


def _audio(shown: Shown) -> str:
    question, seconds = shown.answered.question, shown.seconds
    sound_events = [Segment(*s) for s in question.truth.get("sounds") or ()]
    tracks = [("in the clip", "context", sound_events)]
    # Intervals stand in questions as plain words: "between 1.0 and 2.5".
    asked = parse_segments(question.instruction.replace(" and ", " to "), seconds).items
    answered = parse_segments(shown.answered.text, seconds).items
    if asked:
        tracks.append(("asked about", "asked", asked))
    if question.segments or answered:
        tracks.append(("true", "true", question.segments))
        tracks.append(("answered", "answer", answered))
    drawn = figures.clip_figure(shown.logmel, tracks, seconds)
    if shown.plan is not None and shown.grid is not None:
        drawn += figures.plan_figure(shown.image, shown.plan, shown.grid, seconds)
    heard = _listed(question.truth.get("audio_labels"))
    caption = f"In the sound: {heard}"
    return _figure(drawn + figures.audio_player(shown.audio_bytes), caption, "audio")


def _figure(drawn: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{drawn}<figcaption>{escape(caption)}</figcaption></figure>'


def _listed(names: Sequence[str] | None) -> str:
    return ", ".join(names) if names else "nothing"

"""An answer as HTML: boxes, attention, segments under the spectrogram, and the transport plan.

The figures are those of the report. The plan comes as numbers in the page, and page.js lights up
which patches of image and audio it ties to the one that is pointed at.
"""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from meerkat_jax.inference.answers import Answer
from meerkat_jax.report.figures import (
    audio_player,
    clip_figure,
    image_figure,
    image_uri,
    spectrogram_uri,
)

MOST_AUDIO = 4_000_000  # bytes of the clip that is laid into the page
VERDICTS = {True: "It says: true", False: "It says: false"}


def draw_answer(answer: Answer, question: str, image: np.ndarray | None, audio: bytes) -> str:
    """HTML of an answer with its view.

    image uint8[H, W, 3] in its own proportions (None: the one that the model saw); sound: WAV
    bytes of what is heard.
    """
    view = answer.view
    image = view.image if image is None else image
    boxes = [("answer", box) for box in answer.boxes]
    drawn = image_figure(image, boxes, f"The image, with {_listed(answer)}")
    heat = image_figure(image, boxes, "Attention of the audio on it", view.attention)
    pointed = "What it points at" if boxes else "The image; the answer points at no place in it"
    tracks = [("answered", "answer", answer.segments)]
    clip = clip_figure(view.logmel, tracks, view.seconds)
    return (
        f'<section class="meerkat" aria-label="The answer, drawn">{_said(answer, question)}'
        '<div class="figures">'
        f"{_figure(drawn, pointed)}{_figure(heat, 'Where the audio draws attention')}"
        f"{_figure(clip + audio_player(audio, MOST_AUDIO), 'When, and the audio that it heard')}"
        f"</div>{_plan(answer, image)}</section>"
    )


def _said(answer: Answer, question: str) -> str:
    verdict = VERDICTS.get(answer.verdict)
    facts = [f"<strong>{verdict}</strong>"] if verdict else []
    facts += [escape(note) for note in answer.notes]
    if not answer.boxes and not answer.segments and answer.verdict is None:
        facts.append("no place and no time stands in this answer")
    rows = "".join(f"<li>{fact}</li>" for fact in facts)
    return (
        f'<p class="talk"><span>{escape(question)}</span> <b>{escape(answer.text)}</b></p>'
        f'<ul class="notes">{rows}</ul>'
    )


def _plan(answer: Answer, image: np.ndarray) -> str:
    """Two grids of patches, and the plan between them as uint16, a share of its largest entry."""
    view = answer.view
    rows, columns, notes, times = view.grid
    plan = np.nan_to_num(np.asarray(view.plan, np.float32))
    levels = np.rint(65535 * plan / max(float(plan.max()), 1e-12)).astype("<u2")
    packed = base64.b64encode(levels.tobytes()).decode()
    seen = _grid("seen", columns, rows, image_uri(image), "Patches of the image")
    # Low notes are the first tokens, and the lowest row of a spectrogram.
    heard = _grid("heard", times, notes, spectrogram_uri(view.logmel), "Patches of the audio", True)
    height = image.shape[0] / image.shape[1]
    return (
        f'<figure class="plan" data-plan="{packed}" data-seconds="{view.seconds:g}" '
        f'style="--height:{height:.4f}"><div>{seen}{heard}</div>'
        '<p class="fine" role="status">Point at a patch, or choose one with the arrow keys: what '
        "the transport plan ties to it lights up on the other side.</p>"
        "<figcaption>What belongs together (the transport plan)</figcaption></figure>"
    )


def _grid(kind: str, columns: int, rows: int, image: str, words: str, upwards: bool = False) -> str:
    cells = "".join(
        f'<rect x="{i % columns}" y="{rows - 1 - i // columns if upwards else i // columns}" '
        'width="1" height="1"/>'
        for i in range(rows * columns)
    )
    return (
        f'<svg class="{kind}" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" '
        f'tabindex="0" role="application" aria-label="{words}, {columns} by {rows}" '
        f'data-columns="{columns}"><image href="{image}" width="{columns}" height="{rows}" '
        f'preserveAspectRatio="none"/>{cells}</svg>'
    )


def _figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _listed(answer: Answer) -> str:
    return ", ".join(f"a box around {box.label}" for box in answer.boxes) or "no box"

"""An answer drawn: boxes on the image, segments under the spectrogram, the words below."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from meerkat_jax.data.example import Segment
from meerkat_jax.inference.answers import Answer

WIDTH = 640
SPECTROGRAM, LANE, AXIS, LINE, MARGIN = 120, 22, 18, 20, 10  # heights in pixels
PAPER, INK, SOFT, TRACK = "#ffffff", "#17202b", "#566172", "#e9edf2"
# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07800", "#56b4e9")
RANGE = 80.0  # dB under the loudest that are drawn


def annotate(image: Image.Image, answer: Answer, prompt: str) -> Image.Image:
    """`image` (any size) with its boxes, the spectrogram with its segments, prompt and answer.

    Needs the answer's view. One colour for each label, in boxes and segments alike.
    """
    labels = dict.fromkeys(item.label for item in (*answer.boxes, *answer.segments))
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    rows = [
        _boxes(image, answer, colours),
        _spectrogram(answer.view.logmel),
        *(_lane(segment, answer.view.seconds, colours) for segment in answer.segments),
        _axis(answer.view.seconds),
        _words([f"Q: {prompt}", f"A: {answer.text}", *(f"Note: {note}" for note in answer.notes)]),
    ]
    height = sum(row.height for row in rows) + MARGIN * 2
    page, y = Image.new("RGB", (WIDTH + 2 * MARGIN, height), PAPER), MARGIN
    for row in rows:
        page.paste(row, (MARGIN, y))
        y += row.height
    return page


def _boxes(image: Image.Image, answer: Answer, colours: dict[str, str]) -> Image.Image:
    height = max(1, round(WIDTH * image.height / image.width))
    drawn = image.convert("RGB").resize((WIDTH, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    for box in answer.boxes:
        x0, y0, x1, y1 = box.x0 * WIDTH, box.y0 * height, box.x1 * WIDTH, box.y1 * height
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white", width=5)
        pen.rectangle((x0, y0, x1, y1), outline=colours[box.label], width=3)
        _tag(pen, (x0, max(y0 - LANE, 0)), box.label, colours[box.label])
    return drawn


def _tag(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str) -> None:
    font = _font(15)
    x, y = at
    pen.rectangle((x, y, x + pen.textlength(text, font) + 10, y + LANE), fill=colour)
    pen.text((x + 5, y + 2), text, fill="white", font=font)


def _spectrogram(logmel: np.ndarray) -> Image.Image:
    """float[F, mels] in dB, low frequencies at the bottom."""
    top = float(np.percentile(logmel, 99.5))
    bottom = max(float(np.percentile(logmel, 5)), top - RANGE)
    levels = np.clip((logmel - bottom) / max(top - bottom, 1e-6), 0, 1)
    grey = Image.fromarray((levels.T[::-1] * 255).astype(np.uint8))
    grey = grey.resize((WIDTH, SPECTROGRAM), Image.Resampling.BILINEAR)
    return ImageOps.colorize(grey, black="#080820", mid="#a02a6e", white="#fafaa5")


def _lane(segment: Segment, seconds: float, colours: dict[str, str]) -> Image.Image:
    lane = Image.new("RGB", (WIDTH, LANE), TRACK)
    x0, x1 = (WIDTH * t / seconds for t in (segment.start, segment.end))
    pen, colour, font = ImageDraw.Draw(lane), colours[segment.label], _font(13)
    pen.rectangle((x0, 3, max(x1, x0 + 2), LANE - 4), fill=colour)
    text = f"{segment.label} {segment.start:.1f} to {segment.end:.1f} s"
    width = pen.textlength(text, font) + 6
    inside = x1 - x0 > width
    left = x0 + 5 if inside else (x1 + 6 if x1 + width < WIDTH else max(x0 - width, 0))
    pen.text((left, 3), text, fill="white" if inside else INK, font=font)
    return lane


def _axis(seconds: float) -> Image.Image:
    axis = Image.new("RGB", (WIDTH, AXIS), PAPER)
    pen, font = ImageDraw.Draw(axis), _font(12)
    step = next((s for s in (1, 2, 5, 10, 30, 60) if seconds / s <= 10), 600)
    for t in np.arange(0, seconds + 1e-6, step):
        text = f"{t:g} s"
        x = min(WIDTH * t / seconds, WIDTH - pen.textlength(text, font))
        pen.text((x, 2), text, fill=SOFT, font=font)
    return axis


def _words(texts: list[str]) -> Image.Image:
    lines = [line for text in texts for line in textwrap.wrap(text, 84) or [""]]
    drawn = Image.new("RGB", (WIDTH, LINE * len(lines) + MARGIN), PAPER)
    pen = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        pen.text((0, MARGIN + LINE * number), line, fill=INK, font=_font(14))
    return drawn


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)

"""What is read out of an answer's text, how it is drawn, and the line of progress."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from meerkat_jax.core import progress
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.inference.annotate import MARGIN, SPECTROGRAM, WIDTH, annotate
from meerkat_jax.inference.answers import View, read_answer


@pytest.mark.parametrize(
    ("text", "boxes", "segments", "verdict", "mended"),
    [
        ("[dog, 0.100, 0.200, 0.300, 0.400]", [Box("dog", 0.1, 0.2, 0.3, 0.4)], [], None, 0),
        (
            "[dog, 0.100, 0.200, 0.300, 0.400] [owl, 0.500, 0.500, 1.000, 1.000]",
            [Box("dog", 0.1, 0.2, 0.3, 0.4), Box("owl", 0.5, 0.5, 1.0, 1.0)],
            [],
            None,
            0,
        ),
        ("[dog, 0.300, 0.200, 0.100, 0.400]", [Box("dog", 0.1, 0.2, 0.3, 0.4)], [], None, 1),
        ("[dog, 1.2, 3.4]", [], [Segment("dog", 1.2, 3.4)], None, 0),
        ("[dog, 9.2, 10.4]", [], [Segment("dog", 9.2, 10.0)], None, 1),
        ("I see a bee. I hear a dog: False.", [], [], False, 0),
        ("False? No: True.", [], [], True, 0),
        ("I see a bee.", [], [], None, 0),
        ("", [], [], None, 0),
    ],
)
def test_reading(text, boxes, segments, verdict, mended):
    answer = read_answer(text, seconds=10.0)
    assert answer.text == text
    assert (list(answer.boxes), list(answer.segments)) == (boxes, segments)
    assert (answer.verdict, answer.mended) == (verdict, mended)


def test_as_json_and_without_a_view():
    answer = read_answer("[dog, 0.1, 0.2, 0.3, 0.4] [dog, 1.2, 3.4]", 10.0, ("a note",))
    assert json.loads(json.dumps(answer.to_json())) == {
        "text": answer.text,
        "boxes": [{"label": "dog", "x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4}],
        "segments": [{"label": "dog", "start": 1.2, "end": 3.4}],
        "verdict": None,
        "notes": ["a note"],
    }
    assert answer.attention is None


def view(seconds: float = 10.0) -> View:
    noise = np.random.default_rng(0).normal(-40, 10, (100, 64)).astype(np.float32)
    plan = np.full((16, 4), 1 / 64, np.float32)
    image = np.zeros((64, 64, 3), np.uint8)
    return View(image, noise, np.ones((4, 4)), plan, (4, 4, 2, 2), seconds)


def near(page: Image.Image, x: float, y: float) -> set:
    """Colours in a square of 7 pixels around a place."""
    patch = np.asarray(page)[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
    return {tuple(pixel.tolist()) for pixel in patch.reshape(-1, 3)}


def test_boxes_and_segments_are_drawn_where_they_are():
    text = "[dog, 0.250, 0.500, 0.750, 1.000] [owl, 2.0, 4.0]"
    page = annotate(Image.new("RGB", (200, 100)), read_answer(text, 10.0, (), view()), "Where?")
    blue, orange = (0, 114, 178), (213, 94, 0)
    height = WIDTH // 2  # of the image, which is twice as wide as high
    for x, y in [(0.25, 0.75), (0.75, 0.75), (0.5, 0.5)]:
        assert blue in near(page, MARGIN + x * WIDTH, MARGIN + y * height)
    assert blue not in near(page, MARGIN + 0.5 * WIDTH, MARGIN + 0.75 * height)
    lane = MARGIN + height + SPECTROGRAM + 10
    bar = [orange in near(page, MARGIN + t / 10 * WIDTH, lane) for t in (1.0, 2.1, 3.9, 4.5)]
    assert bar == [False, True, True, False]


@pytest.mark.parametrize(
    ("size", "text", "notes"),
    [
        ((1, 900), "[dog, 0.0, 0.0, 0.0, 0.0]", ()),
        ((900, 1), "[, 0.1, 0.1, 0.9, 0.9] [dog, 10.0, 10.0] [owl, 0.0, 0.0]", ()),
        ((64, 64), "words " * 400, ("the audio is silent", "a note " * 60)),
        ((64, 64), "[\u732b \U0001f600, 0.1, 0.1, 0.9, 0.9]\n\n\u0627\u0644", ()),
        ((64, 64), "", ()),
    ],
)
def test_any_answer_can_be_drawn(size, text, notes):
    page = annotate(Image.new("RGBA", size), read_answer(text, 10.0, notes, view()), "Where?")
    assert page.width == WIDTH + 2 * MARGIN and page.height > SPECTROGRAM


def test_a_silent_clip_can_be_drawn():
    flat = View(**{**vars(view()), "logmel": np.full((100, 64), -100.0, np.float32)})
    annotate(Image.new("L", (64, 64)), read_answer("nothing", 10.0, (), flat), "When?")


def test_progress_tells_rate_and_time_left(monkeypatch):
    lines, now = [], [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = progress.Progress("instances: scenes", 400, every=5.0, say=lines.append)
    for second, done in [(60, 16), (62, 48), (66, 112), (67, 128), (84, 400)]:
        now[0] = second
        told.report(done)
    assert lines == [
        "instances: scenes 16/400",
        "instances: scenes 112/400, 16.0 per second, 0:18 left",
        "instances: scenes 400/400, 16.0 per second, 0:00 left",
    ]

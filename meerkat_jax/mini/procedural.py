"""Images and audio clips made by code: the mini data set where there is no network, and in tests.

48 classes, eight shapes in six colours ("redstar", "tealmoon"). Each combination has its own
texture, and one of eight timbres in one of six registers, so that neither the shape nor the colour
alone tells the sound. Instance "b" is the same class drawn and played anew: turned, stretched,
of a slightly other hue, pitch, rhythm and length.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from meerkat_jax.mini.thing import Media, finish_audio

SIDE = 160  # pixels of the canvas that a shape is drawn on
COLOURS = {"red": 0.0, "gold": 0.13, "lime": 0.27, "teal": 0.48, "blue": 0.63, "pink": 0.86}  # hue
_LOWEST, _OCTAVES = 160.0, 0.75  # Hz of the first register; step between registers

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Timbre = Callable[[float, np.ndarray, np.random.Generator], np.ndarray]


def make_media(sample_rate: int) -> dict[tuple[str, str], Media]:
    """All classes, instances "a" and "b", by (name, instance); the same for every call."""
    media = {}
    for i, shape in enumerate(SHAPES):
        for j, colour in enumerate(COLOURS):
            name = colour + shape
            timbre = (i + 3 * j) % len(TIMBRES)
            register = (j + timbre) % len(COLOURS)  # with the timbre before: no pair twice
            for k, instance in enumerate("ab"):
                rng = np.random.default_rng([i, j, k])
                image = draw(shape, colour, texture=(i + j) % 4, rng=rng)
                audio = play(timbre, register, sample_rate, rng)
                media[name, instance] = Media(name, image, audio, instance)
    return media


def draw(shape: str, colour: str, texture: int, rng: np.random.Generator) -> np.ndarray:
    """One image, uint8[height, width, 4], cropped to what is opaque."""
    turn, stretch = rng.uniform(-0.25, 0.25), rng.uniform(0.75, 1.3)
    axis = np.linspace(-1.15, 1.15, SIDE)
    x0, y0 = np.meshgrid(axis * max(1.0, 1 / stretch), axis * max(1.0, stretch))
    x = np.cos(turn) * x0 * stretch - np.sin(turn) * y0 / stretch
    y = np.sin(turn) * x0 * stretch + np.cos(turn) * y0 / stretch
    alpha = np.clip(0.5 - SHAPES[shape](x, y) * SIDE / 2.6, 0.0, 1.0)
    hue = COLOURS[colour] + rng.uniform(-0.015, 0.015)
    dark, light = (np.array(colorsys.hsv_to_rgb(hue % 1, 0.9, v)) for v in (0.45, 0.95))
    # shaded from above, and by the texture
    weight = (0.5 - 0.25 * y) * 0.4 + 0.6 * _texture(texture, x, y, rng.uniform(4.0, 5.5))
    rgb = dark + (light - dark) * weight[..., None]
    image = np.concatenate([rgb, alpha[..., None]], axis=-1)
    opaque = alpha > 0.1
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _texture(kind: int, x: np.ndarray, y: np.ndarray, density: float) -> np.ndarray:
    """Brightness in 0..1: plain, stripes, checks or dots."""
    across, down = np.sin(density * np.pi * x), np.sin(density * np.pi * y)
    if kind == 0:
        return np.ones_like(x)
    return (down > 0, across * down > 0, np.abs(across * down) < 0.45)[kind - 1].astype(float)


# Shapes: below zero inside, about the distance to the edge near it; y grows downwards.
def _disc(x, y):
    return np.hypot(x, y) - 1


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _box(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.85


def _wedge(x, y):
    return np.maximum(0.87 * np.abs(x) - 0.5 * y - 0.45, y - 0.8)


def _star(x, y):
    angle = np.arctan2(x, -y)
    angle = 2 * np.pi / 5 * np.abs((angle * 5 / (2 * np.pi) + 0.5) % 1 - 0.5)  # from the next tip
    radius, notch = np.hypot(x, y), 0.42 * np.exp(0.2j * np.pi)
    normal = np.array([notch.imag, 1 - notch.real]) / abs(1 - notch)  # of the edge tip to notch
    return normal[0] * (radius * np.cos(angle) - 1) + normal[1] * radius * np.sin(angle)


def _cross(x, y):
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.27)


def _moon(x, y):
    return np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - 0.5, y))


def _bloom(x, y):
    return 0.7 * (np.hypot(x, y) - 0.78 - 0.22 * np.cos(6 * np.arctan2(x, -y)))


SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": _ring,
    "box": _box,
    "wedge": _wedge,
    "star": _star,
    "cross": _cross,
    "moon": _moon,
    "bloom": _bloom,
}


def play(timbre: int, register: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One sound, float32[samples], 0.8 to 2.4 s."""
    pitch = _LOWEST * 2 ** (_OCTAVES * register + rng.uniform(-0.08, 0.08))
    t = np.arange(round(rng.uniform(0.8, 2.4) * sample_rate)) / sample_rate
    return finish_audio(TIMBRES[timbre](pitch, t, rng), sample_rate)


def _partials(pitch: float, t: np.ndarray, ratios, weights) -> np.ndarray:
    """Sum of sines, without those that the sampling rate cannot carry."""
    highest = 0.45 / (t[1] - t[0])
    return sum(
        weight * np.sin(2 * np.pi * pitch * ratio * t)
        for ratio, weight in zip(ratios, weights, strict=True)
        if pitch * ratio < highest
    )


def _since(t: np.ndarray, rate: float) -> np.ndarray:
    """Seconds since the last of the strokes that come at `rate` per second."""
    return np.mod(t, 1 / rate)


def _reed(pitch, t, rng):
    k = np.arange(1, 11)
    return _partials(pitch, t, k, 1 / k)


def _pipe(pitch, t, rng):
    tremolo = 1 + 0.6 * np.sin(2 * np.pi * rng.uniform(4, 6) * t)
    return tremolo * _partials(pitch, t, (1, 3), (1.0, 0.12))


def _bell(pitch, t, rng):
    tone = _partials(pitch, t, (1, 2.76, 5.4, 8.9), (1.0, 0.7, 0.45, 0.25))
    return tone * np.exp(-6 * _since(t, rng.uniform(1.6, 2.2)))


def _brass(pitch, t, rng):
    depth = 5 * np.exp(-3 * _since(t, rng.uniform(2.5, 3.5)))
    return np.sin(2 * np.pi * pitch * t + depth * np.sin(2 * np.pi * 1.41 * pitch * t))


def _siren(pitch, t, rng):
    rate = rng.uniform(1.5, 2.5)
    octaves = 0.6 * np.sin(2 * np.pi * rate * t)
    phase = 2 * np.pi * np.cumsum(pitch * 2**octaves) * (t[1] - t[0])
    return np.sin(phase) + 0.4 * np.sin(2 * phase)


def _rattle(pitch, t, rng):
    stroke = _since(t, rng.uniform(9, 13))
    return np.exp(-70 * stroke) * np.sin(2 * np.pi * 2.0 * pitch * stroke)


def _hiss(pitch, t, rng):
    """Noise in an octave above the pitch, in bursts."""
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    frequency = np.fft.rfftfreq(len(t), t[1] - t[0])
    spectrum[(frequency < pitch) | (frequency > 2 * pitch)] = 0
    return np.fft.irfft(spectrum, len(t)) * (0.15 + (_since(t, rng.uniform(3, 4)) < 0.15))


def _yodel(pitch, t, rng):
    high = np.floor(t * rng.uniform(5, 7)) % 2
    return _partials(pitch, t, (1, 2), (1, 0.5)) * (1 - high) + high * _partials(
        1.5 * pitch, t, (1, 2), (1, 0.5)
    )


TIMBRES: tuple[Timbre, ...] = (_reed, _pipe, _bell, _brass, _siren, _rattle, _hiss, _yodel)

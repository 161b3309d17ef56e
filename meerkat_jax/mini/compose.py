"""Compose scenes from single images and single sounds: what is where, what sounds when.

A scene is planned first (names, boxes, segments: pure and cheap), then rendered. Everything is
drawn from one `numpy` generator seeded by (seed, split, index), so a scene does not depend on the
number of processes or on the scenes before it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
import soundfile
from PIL import Image, ImageFilter

from meerkat_jax.data.example import Box, Segment
from meerkat_jax.mini.thing import Media

IMAGE_SIZE = 200  # so that a pixel is 0.005 of the image: boxes are exact in three decimals
CLIP_SECONDS = 10.0
SPLITS = ("train", "compositions", "augmentations", "instances")

SHARE_MATCHED, SHARE_MISMATCHED = 0.62, 0.30  # the rest is silence or noise
# Of the scenes with sound. More in training: the second of two is learned last (NOTES.md).
SHARE_TWO_SOUNDS, SHARE_TWO_SOUNDS_TRAIN = 0.40, 0.60
SHARE_SIMULTANEOUS = 0.5  # of the scenes with two sounds; the others may overlap by chance too


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a scene holds. `objects` are the images' boxes, `sounds` the segments."""

    objects: tuple[Box, ...]
    sounds: tuple[Segment, ...]
    quiet: str  # "" when something sounds, otherwise "silence" or "noise"

    @property
    def image_labels(self) -> tuple[str, ...]:
        """Names of the pictured objects, alphabetical."""
        return tuple(sorted({box.label for box in self.objects}))

    @property
    def audio_labels(self) -> tuple[str, ...]:
        """Names of what sounds, alphabetical."""
        return tuple(sorted(sound.label for sound in self.sounds))

    @property
    def both(self) -> tuple[str, ...]:
        """Names of what is seen and heard, alphabetical."""
        return tuple(name for name in self.image_labels if name in self.audio_labels)


def scene_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one scene, the same whoever renders it."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def plan_scene(
    rng: np.random.Generator, classes: Sequence[str], aspect: dict[str, float], split: str
) -> Plan:
    """Draw 1 to 3 pictured and 0 to 2 sounding classes, their boxes and their segments.

    `aspect` is width / height of each class's image; `split` says how often two things sound.
    """
    two_sounds = SHARE_TWO_SOUNDS_TRAIN if split == "train" else SHARE_TWO_SOUNDS
    n_seen = int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
    order = [classes[i] for i in rng.permutation(len(classes))]
    seen, others = order[:n_seen], order[n_seen:]
    draw = rng.random()
    if draw < SHARE_MATCHED:
        # the second sound belongs to something else in the image as often as to something unseen
        second = seen[1] if n_seen > 1 and rng.random() < 0.6 else others[0]
        heard, quiet = [seen[0], second], ""
    elif draw < SHARE_MATCHED + SHARE_MISMATCHED:
        heard, quiet = others[:2], ""
    else:
        heard, quiet = [], "silence" if rng.random() < 0.5 else "noise"
    if len(heard) == 2 and rng.random() >= two_sounds:
        heard = heard[:1]
    return Plan(_place(rng, seen, aspect), _time(rng, heard), quiet)


def _place(
    rng: np.random.Generator, names: Sequence[str], aspect: dict[str, float]
) -> tuple[Box, ...]:
    """Boxes that do not overlap; longest side .33 to .6 of the image, smaller when crowded."""
    largest = {1: 0.6, 2: 0.52, 3: 0.44}[len(names)]
    while True:
        boxes: list[Box] = []
        # in any order: what finds the image empty gets larger, which must not tell what sounds
        for name in rng.permutation(names).tolist():
            for _ in range(20):
                side = rng.uniform(0.33, largest)
                w, h = min(side, side * aspect[name]), min(side, side / aspect[name])
                x0, y0 = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
                box = Box(name, x0, y0, x0 + w, y0 + h)
                if not any(_overlap(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == len(names):
            return tuple(boxes)


def _overlap(a: Box, b: Box) -> bool:
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def _time(rng: np.random.Generator, names: Sequence[str]) -> tuple[Segment, ...]:
    """A segment of 1.5 to 4.5 s for each name, on the grid of 0.1 s that answers are written in."""
    lengths = [int(rng.integers(15, 46)) for _ in names]
    total = round(CLIP_SECONDS * 10)
    starts = [int(rng.integers(0, total - n + 1)) for n in lengths]
    if len(names) == 2 and rng.random() < SHARE_SIMULTANEOUS:  # at least 0.5 s together
        low = max(0, starts[0] - lengths[1] + 5)
        high = min(total - lengths[1], starts[0] + lengths[0] - 5)
        starts[1] = int(rng.integers(low, high + 1))
    return tuple(
        Segment(name, start / 10, (start + n) / 10)
        for name, start, n in zip(names, starts, lengths, strict=True)
    )


def render_image(
    rng: np.random.Generator, plan: Plan, media: dict[str, Media], new_augmentations: bool
) -> tuple[bytes, tuple[Box, ...]]:
    """JPEG bytes of the scene and the boxes as pasted (whole pixels, after any rotation)."""
    canvas = Image.fromarray(_background(rng))
    boxes = []
    for box in plan.objects:
        stamp = Image.fromarray(media[box.label].image)
        size = ((box.x1 - box.x0) * IMAGE_SIZE, (box.y1 - box.y0) * IMAGE_SIZE)
        stamp = stamp.resize([max(8, round(s)) for s in size], Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        stamp = _jitter(rng, stamp, new_augmentations)
        x = min(round(box.x0 * IMAGE_SIZE), IMAGE_SIZE - stamp.width)
        y = min(round(box.y0 * IMAGE_SIZE), IMAGE_SIZE - stamp.height)
        canvas.paste(stamp, (x, y), stamp)
        corners = np.array([x, y, x + stamp.width, y + stamp.height]) / IMAGE_SIZE
        boxes.append(Box(box.label, *corners.round(3).tolist()))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), tuple(boxes)


def _jitter(rng: np.random.Generator, stamp: Image.Image, new: bool) -> Image.Image:
    """Brightness as in training; `new` adds what training never shows: turn, tint and blur."""
    gains = np.ones(4, np.float32)
    gains[:3] *= rng.uniform(0.8, 1.2)
    if new:
        gains[:3] *= rng.uniform(0.75, 1.25, size=3)
    stamp = Image.fromarray(np.minimum(np.asarray(stamp) * gains, 255).astype(np.uint8))
    if new:
        angle = rng.choice([-1, 1]) * rng.uniform(8, 20)
        turned = stamp.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        stamp = turned.crop(turned.getchannel("A").point(lambda a: 255 * (a > 32)).getbbox())
        stamp = stamp.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
        stamp.thumbnail((IMAGE_SIZE // 2, IMAGE_SIZE // 2))
    return stamp


def _background(rng: np.random.Generator) -> np.ndarray:
    """Smooth colour noise, a gradient, stripes or a chequer; uint8[200, 200, 3]."""
    axis = np.arange(IMAGE_SIZE, dtype=np.float32) / IMAGE_SIZE
    x, y = axis, axis[:, None]
    one, two = rng.uniform(30, 225, (2, 3))
    kind = rng.integers(4)
    if kind == 0:
        n = int(rng.integers(3, 12))
        small = Image.fromarray(rng.integers(30, 226, (n, n, 3), dtype=np.uint8))
        return np.asarray(small.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC))
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.7 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    elif kind == 2:
        waves, slant = rng.uniform(2, 8), rng.uniform(-1, 1)
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * waves * x + 2 * np.pi * waves * slant * y)
    else:
        n = rng.integers(2, 9)
        mix = (np.floor(x * n) + np.floor(y * n)) % 2
    # A table of 256 mixed colours, since mixing every pixel would be the dearest step of a scene.
    ramp = np.linspace(0, 1, 256)[:, None]
    colours = (one * ramp + two * (1 - ramp)).astype(np.int16)
    side = len(_grain())
    top, left = rng.integers(0, side - IMAGE_SIZE + 1, 2)
    grain = _grain()[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE, None]
    pixels = np.take(colours, (255 * mix).clip(0, 255).astype(np.uint8), axis=0) + grain
    return pixels.clip(0, 255).astype(np.uint8)


@functools.cache
def _grain() -> np.ndarray:
    """Where images cut their grain from, int16[512, 512]: drawing it anew would cost more."""
    return np.random.default_rng(0).normal(0, 6, (512, 512)).round().astype(np.int16)


@functools.cache
def _noise() -> np.ndarray:
    """Where clips cut their noise from, float32[2 ** 20] of RMS 1; for the same reason."""
    return np.random.default_rng(1).standard_normal(1 << 20, dtype=np.float32)


def render_audio(
    rng: np.random.Generator,
    plan: Plan,
    media: dict[str, Media],
    sample_rate: int,
    new_augmentations: bool,
) -> bytes:
    """WAV bytes: each sound repeated to fill its segment, over faint noise (none if silent)."""
    total = round(CLIP_SECONDS * sample_rate)
    level = {"": rng.uniform(-65, -45), "noise": rng.uniform(-40, -20), "silence": -200}[plan.quiet]
    begin = int(rng.integers(0, len(_noise()) - total + 1))
    clip = _noise()[begin : begin + total] * np.float32(10 ** (level / 20))
    for sound in plan.sounds:
        wave = media[sound.label].audio
        if new_augmentations:
            wave = _new_voice(rng, wave)
        start, n = (round(s * sample_rate) for s in (sound.start, sound.end - sound.start))
        gain = 10 ** (rng.uniform(-4, 2) / 20)
        clip[start : start + n] += _repeat(wave, n, sample_rate) * np.float32(gain)
    peak = max(clip.max(), -clip.min())
    clip *= np.float32(min(1.0, 0.99 / peak))
    buffer = io.BytesIO()
    # mu-law: 160 kB for ten seconds, read in a quarter of FLAC's time, error 35 dB below the clip
    soundfile.write(buffer, clip, sample_rate, format="WAV", subtype="ULAW")
    return buffer.getvalue()


def _repeat(wave: np.ndarray, samples: int, sample_rate: int) -> np.ndarray:
    """Tile to length; 10 ms ramps at both ends, so that the cut itself is not heard."""
    wave = np.resize(wave, samples).copy()
    ramp = np.linspace(0, 1, min(sample_rate // 100, samples // 2), dtype=np.float32)
    wave[: len(ramp)] *= ramp
    wave[samples - len(ramp) :] *= ramp[::-1]
    return wave


def _new_voice(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """What training never plays: 6 to 12 % faster or slower (pitch moves too) and an echo."""
    rate = rng.choice([-1, 1]) * rng.uniform(0.06, 0.12) + 1
    places = np.arange(0, len(wave) - 1, rate)
    wave = np.interp(places, np.arange(len(wave)), wave).astype(np.float32)
    delay = min(len(wave) - 1, int(rng.uniform(0.03, 0.09) * 16000))
    wave[delay:] += 0.4 * wave[:-delay]
    return wave

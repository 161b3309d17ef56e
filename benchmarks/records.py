"""Records as training reads them, made for the benchmarks: media that pack like real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from array_record.python import array_record_module
from PIL import Image

from meerkat_jax.data.example import Example, Question, to_bytes
from meerkat_jax.data.pipeline import Encode
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.mini.tokenizer import build_mini_tokenizer

RATE = 48_000  # Hz
QUESTIONS = [
    ("Where is the object that makes this sound?", "[dog, 0.100, 0.200, 0.300, 0.400]"),
    ("When does the dog bark?", "[dog, 1.0, 2.5]"),
    ("Is the sound that of a dog?", "Yes."),
]


def wave(rng: np.random.Generator, seconds: float, rate: int = RATE) -> np.ndarray:
    """Some tones that come and go over pink noise, float64[seconds * rate]."""
    count = round(seconds * rate)
    at = np.arange(count) / rate
    hiss = np.fft.rfft(rng.standard_normal(count))
    hiss[1:] /= np.sqrt(np.arange(1, len(hiss)))
    heard = 3.0 * np.fft.irfft(hiss, count)
    for pitch in rng.uniform(100, 2000, 4):
        heard += 0.1 * np.sin(2 * np.pi * pitch * at) * (np.sin(rng.uniform(1, 6) * at) > 0)
    return 0.3 * heard / np.abs(heard).max()


def audio(rng: np.random.Generator, seconds: float, rate: int = RATE, kind: str = "FLAC") -> bytes:
    """FLAC (or WAV) of 16 bits of such a wave: it packs like a recording."""
    held = io.BytesIO()
    soundfile.write(held, wave(rng, seconds, rate), rate, format=kind, subtype="PCM_16")
    return held.getvalue()


def image(rng: np.random.Generator, side: int) -> bytes:
    """JPEG of smooth patches with grain on them: it packs like a photograph."""
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grain = smooth + 12 * rng.standard_normal((side, side, 3))
    held = io.BytesIO()
    Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(held, "JPEG", quality=90)
    return held.getvalue()


def write_split(folder: Path, records: int, seconds: float, side: int, rate: int = RATE) -> int:
    """Write a split "train" of so many examples; returns its bytes."""
    path = folder / "train-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for index in range(records):
        rng = np.random.default_rng(index)
        asked = tuple(Question("arig", *words, truth={"kind": "arig"}) for words in QUESTIONS)
        media = image(rng, side), audio(rng, seconds, rate)
        writer.write(to_bytes(Example(str(index), "benchmark", "train", *media, asked, ("dog",))))
    writer.close()
    return path.stat().st_size


def encoder(seconds: float, side: int, rate: int = RATE) -> Encode:
    """What the train command does with a record: images of `side` pixels, sounds at `rate` Hz."""
    tokenizer = build_mini_tokenizer([text for pair in QUESTIONS for text in pair], ["dog"])
    shapes = Shapes(
        side,
        rate,
        seconds,
        num_packs=2,
        pack_length=192,
        max_target_tokens=160,
        max_answer_tokens=144,
    )
    return Encode(shapes, make_prompt(tokenizer, "llama2"), ("dog",), {})

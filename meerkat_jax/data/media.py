"""The media of a planned example: found below the source folder, cut, and encoded for a record."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.data import containers, video
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.image import read_image
from meerkat_jax.data.sources.entry import Place
from meerkat_jax.data.sources.skips import Bad
from meerkat_jax.errors import UserError

LONGEST_SIDE = 512  # pixels of a stored picture
QUALITY = 92  # of its JPEG
RATE = 48_000  # Hz of a stored sound
SOUNDS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
OPUS_EFFORT = 0.7  # of libsndfile's scale: about 80 kbit/s for one channel
SHORT = 0.25  # seconds that a sound may end before what is annotated: last frames are often lost

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
WAVES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au")


class Shelf:
    """Where files lie below a folder, by name without suffix; a folder is listed once.

    A name of a folder means the files in all folders below it too (OpenImages comes in parts).
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.folders: dict[str, dict[str, list[str]]] = {}

    def find(self, places: Sequence[Place], kinds: Sequence[str]) -> tuple[str, float] | None:
        """(path, time in it) of the first place with a file whose suffix is one of `kinds`."""
        for folder, name, at, wanted in places:
            for path in self._listed(folder).get(name, ()):
                suffix = os.path.splitext(path)[1]
                if suffix.lower() in kinds and wanted in ("", suffix):
                    return path, at
        return None

    def _listed(self, folder: str) -> dict[str, list[str]]:
        if folder not in self.folders:
            found: dict[str, list[str]] = {}
            for home, inner, files in os.walk(self.root / folder, followlinks=True):
                inner.sort()
                for file in sorted(files):
                    found.setdefault(os.path.splitext(file)[0], []).append(f"{home}/{file}")
            self.folders[folder] = found
        return self.folders[folder]


def find_picture(shelf: Shelf, places: Sequence[Place]) -> tuple[str, float] | None:
    """The file of a picture, or a video and a time in it; None when neither is there."""
    return shelf.find(places, PICTURES + video.SUFFIXES)


def find_sound(shelf: Shelf, places: Sequence[Place]) -> tuple[str, float] | None:
    """The file of a sound or a video, and when the clip begins; None when neither is there."""
    return shelf.find(places, WAVES + video.SUFFIXES + video.SOUND_SUFFIXES)


def encode_picture(path: str, at: float) -> bytes:
    """JPEG of a picture, or of a video's frame, with its longest side at most LONGEST_SIDE.

    A JPEG that is upright and small enough is taken as it is. Bad when it cannot be read.
    """
    try:
        if containers.detect_path(path):
            picture = Image.fromarray(video.load_frame(path, at))
        else:
            picture = read_image(path)
            data = Path(path).read_bytes() if max(picture.size) <= LONGEST_SIDE else b""
            if data[:3] == b"\xff\xd8\xff" and _plain(data):
                return data
    except UserError as error:
        raise Bad("picture cannot be read", str(error)) from None
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _plain(data: bytes) -> bool:
    """Whether a JPEG has nothing that readers treat in different ways: no turn, three colours."""
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode == "RGB" and picture.getexif().get(0x0112, 1) == 1


def encode_sound(path: str, at: float, seconds: float, needed: float, kind: str = "flac") -> bytes:
    """At most `seconds` of a sound from `at` on: mono, RATE Hz, as `kind` of SOUNDS.

    Bad when it cannot be read, or ends before `needed` seconds.
    """
    try:
        wave = _wave(path, at, seconds)
    except UserError as error:
        raise Bad("sound cannot be read", str(error)) from None
    if len(wave) < (needed - SHORT) * RATE:
        raise Bad(
            "sound is shorter than its annotation",
            f"{path}: {len(wave) / RATE:.2f} s from {at:g} s on, expected {needed:g} s",
        )
    container, codec = SOUNDS[kind]
    effort = {"compression_level": OPUS_EFFORT} if kind == "opus" else {}
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=container, subtype=codec, **effort)
    return out.getvalue()


def _wave(path: str, at: float, seconds: float) -> np.ndarray:
    """float32[n], mono at RATE."""
    wave, info = load_audio(path, RATE, seconds, start=at, isolate=False)
    return wave[: round(min(seconds, info.seconds) * RATE)]

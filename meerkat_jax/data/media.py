"""The media of a planned example: found below the source folder, cut, and encoded for a record."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import containers, video
from meerkat_jax.data.audio import is_silent, load_audio
from meerkat_jax.data.image import SIDEWAYS, read_turned, turned_back
from meerkat_jax.data.sources.entry import Place
from meerkat_jax.data.sources.skips import RowError

LONGEST_SIDE = 512  # pixels of a stored image
QUALITY = 92  # of its JPEG
RATE = 48_000  # Hz of a stored sound
AUDIO_FORMATS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
OPUS_EFFORT = 0.7  # of libsndfile's scale: about 80 kbit/s for one channel
# What is noted of images with an EXIF turn.
AS_STORED = "the image's EXIF turn is not applied: its boxes are of what is stored"
UPRIGHT = "the image's EXIF turn is applied: its boxes, if any, are of what is upright"
SHORT = (
    0.25  # seconds that an audio clip may end before what is annotated: last frames are often lost
)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
WAVES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au")


class MediaIndex:
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


def find_image(media_index: MediaIndex, places: Sequence[Place]) -> tuple[str, float] | None:
    """The file of an image, or a video and a time in it; None when neither is there."""
    return media_index.find(places, IMAGES + video.SUFFIXES)


def find_audio(media_index: MediaIndex, places: Sequence[Place]) -> tuple[str, float] | None:
    """The file of an audio clip or video, and when the clip begins; None if neither is there."""
    return media_index.find(places, WAVES + video.SUFFIXES + video.AUDIO_SUFFIXES)


def encode_image(
    path: str,
    at: float,
    stored: bool = False,
    sizes: Sequence[tuple[float, float]] = (),
) -> tuple[bytes, tuple[str, ...]]:
    """JPEG of an image, or of a video's frame, with its longest side at most LONGEST_SIDE.

    `stored` and `sizes` are those of the entry: with an EXIF turn the image is what its boxes are
    of, so that the two never part, and that is noted. A JPEG without one that is small enough is
    taken as it is. RowError when it cannot be read, or its sides are those of `sizes` swapped.
    """
    noted: tuple[str, ...] = ()
    try:
        if containers.detect_path(path):
            image = Image.fromarray(video.load_frame(path, at))
            _check_swapped(path, image.size, sizes)
        else:
            image, turn = read_turned(path)
            if turn is None:
                _check_swapped(path, image.size, sizes)
            else:
                stored = _as_stored(path, image.size, turn, stored, sizes)
                image = turned_back(image, turn) if stored else image
                noted = (AS_STORED if stored else UPRIGHT,)
            data = Path(path).read_bytes() if max(image.size) <= LONGEST_SIDE else b""
            if data[:3] == b"\xff\xd8\xff" and _plain(data):
                return data, noted
    except UserError as error:
        raise RowError("image cannot be read", str(error)) from None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=QUALITY)
    return out.getvalue(), noted


def _as_stored(
    path: str,
    upright: tuple[int, int],
    turn: Image.Transpose,
    stored: bool,
    sizes: Sequence[tuple[float, float]],
) -> bool:
    """Whether boxes are of an image as it is stored: what `sizes` tell, else `stored`."""
    told = {_wide(size) for size in sizes} - {None}
    if turn not in SIDEWAYS or _wide(upright) is None or not told:
        return stored
    if len(told) > 1:
        raise RowError("boxes are of images with other sides", f"{path}: {list(sizes)}")
    return told != {_wide(upright)}


def _check_swapped(path: str, size: tuple[int, int], sizes: Sequence[tuple[float, float]]) -> None:
    """RowError where an image was turned and its boxes were not, and nothing tells how."""
    if size[0] != size[1] and size[::-1] in sizes:
        found = f"{path}: {size[0]} x {size[1]}, boxes are of {size[1]} x {size[0]}"
        raise RowError("boxes are of the image with its sides swapped", found)


def _wide(size: tuple[float, float]) -> bool | None:
    """Whether an image is wider than high; None for a square."""
    return None if size[0] == size[1] else size[0] > size[1]


def _plain(data: bytes) -> bool:
    """Whether a JPEG has nothing that readers treat in different ways: no turn, three colours."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1


def encode_audio(
    path: str,
    at: float,
    seconds: float,
    needed: float,
    kind: str = "flac",
    claimed: bool = False,
) -> tuple[bytes, tuple[str, ...]]:
    """At most `seconds` of an audio clip from `at` on: mono, RATE Hz, as `kind` of AUDIO_FORMATS.

    Returns the bytes and notes. RowError when the file cannot be read, ends before `needed`
    seconds, or is silent although the row has audio labels (`claimed`).
    """
    try:
        wave, noted = _wave(path, at, seconds)
    except UserError as error:
        raise RowError("sound cannot be read", str(error)) from None
    if len(wave) < (needed - SHORT) * RATE:
        raise RowError(
            "sound is shorter than its annotation",
            f"{path}: {len(wave) / RATE:.2f} s from {at:g} s on, expected {needed:g} s",
        )
    if is_silent(wave):
        if claimed:
            raise RowError(
                "sound is silent, but something is said to be heard", f"{path} from {at:g} s"
            )
        noted += ("the audio is silent",)
    container, codec = AUDIO_FORMATS[kind]
    effort = {"compression_level": OPUS_EFFORT} if kind == "opus" else {}
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=container, subtype=codec, **effort)
    return out.getvalue(), noted


def _wave(path: str, at: float, seconds: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """float32[n], mono at RATE, within -1 to 1, and what is to be noted of it."""
    wave, info = load_audio(path, RATE, seconds, start=at, isolate=False)
    return wave[: round(min(seconds, info.seconds) * RATE)], info.kinds

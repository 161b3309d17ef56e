"""What a visitor drops, within the limits: to draw and to play; videos split.

Errors call a file by its name alone: where the server keeps it is nobody's business.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import isolated
from meerkat_jax.data.audio import count_seconds, load_audio
from meerkat_jax.data.image import read_image, read_size
from meerkat_jax.demo_page.limits import Limits

SHOWN_SIZE = 640  # pixels of the longest side
PLAYED_RATE = 16_000  # Hz
VIDEO_RATE = 48_000


def check_image(path: str, limits: Limits) -> None:
    """Raises UserError when the file is gone, too large or has too many pixels; decodes nothing."""
    name = _check_file(path, limits)
    pixels = math.prod(read_size(path) or (0,)) / 1e6
    if pixels > limits.megapixels:
        raise UserError(
            f"{name}: {pixels:.0f} million pixels; at most {limits.megapixels:g} million are taken"
        )


def check_audio(path: str, limits: Limits) -> None:
    """Raises UserError when the file is gone, too large or too long; decodes nothing."""
    name = _check_file(path, limits)
    _check_seconds(name, count_seconds(path) or 0, limits)


def read_image_file(content: bytes) -> np.ndarray:
    """uint8[H, W, 3] for the page: upright, in its proportions, the longest side 640 at most."""
    return np.array(read_image(content, longest=SHOWN_SIZE))


def read_audio_file(content: bytes, seconds: float) -> bytes:
    """WAV bytes of the `seconds` that are heard, mono."""
    wave, _ = load_audio(content, PLAYED_RATE, seconds)
    file = io.BytesIO()
    soundfile.write(file, wave, PLAYED_RATE, "PCM_16", format="WAV")
    return file.getvalue()


def split_video(path: str, seconds: float, limits: Limits) -> tuple[Path, Path | None, str]:
    """A frame (PNG) and the first `seconds` of sound (WAV) beside `path`, and a note on them.

    The frame is the one in the middle of what is heard. A video without sound gives a frame alone.
    Raises UserError when it is no video, too long or too large.
    """
    name = _check_file(path, limits)
    length = isolated.media_seconds(path, "video", name)
    _check_seconds(name, length, limits)
    at = min(length, seconds) / 2
    image = Path(path).with_suffix(".frame.png")
    Image.fromarray(isolated.load_frame(path, at, name)).save(image)
    note = f"the image is the frame at {at:.1f} s"
    try:
        wave, info = load_audio(path, VIDEO_RATE, seconds, name=name)
    except UserError as error:
        return image, None, f"{note}; {error}"
    wave = wave[: round(min(seconds, info.seconds) * VIDEO_RATE)]
    audio = Path(path).with_suffix(".sound.wav")
    soundfile.write(audio, wave, VIDEO_RATE)
    return image, audio, f"{note}, the audio its first {len(wave) / VIDEO_RATE:.1f} s"


def _check_file(path: str, limits: Limits) -> str:
    """The file's name; UserError when it is not there any more or too large."""
    name = Path(path).name
    try:
        megabytes = Path(path).stat().st_size / 2**20
    except OSError:
        raise UserError(
            f"{name} is not here any more: files are deleted after {limits.keep_minutes:g} "
            "minutes; give it again"
        ) from None
    if megabytes > limits.megabytes:
        raise UserError(f"{name}: {megabytes:.1f} MB; at most {limits.megabytes:g} MB are taken")
    return name


def _check_seconds(name: str, seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds:
        raise UserError(f"{name}: {seconds:.1f} s long; at most {limits.seconds:g} s are taken")

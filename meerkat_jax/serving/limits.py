"""What a request may cost: checked as early as it can be told, so that nobody pays for others."""

from __future__ import annotations

import dataclasses
import math

from meerkat_jax.data.audio import count_seconds
from meerkat_jax.data.image import read_size
from meerkat_jax.serving.refusals import bad


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost, and what all that are read at a time."""

    body: int = 32 << 20  # bytes of a request
    pixels: int = 40_000_000  # of an image
    audio: float = 600.0  # seconds
    seconds: float = 120.0  # from a request to its answer
    bodies: int = 256 << 20  # bytes of all requests that are being read and decoded
    stall: float = 10.0  # seconds without bodies.PROGRESS more of a request


def check_media(image: bytes | None, audio: bytes | None, limits: Limits) -> None:
    """Refuse what its header says is too large; what has no header is refused where it is read."""
    if image is not None:
        pixels = math.prod(read_size(image) or (0,))
        if pixels > limits.pixels:
            message = f"an image of {pixels} pixels; expected at most {limits.pixels}"
            raise bad(message, "messages", "picture_too_large")
    if audio is not None:
        seconds = count_seconds(audio) or 0
        if seconds > limits.audio:
            message = f"an audio clip of {seconds:.1f} s; expected at most {limits.audio:g} s"
            raise bad(message, "messages", "sound_too_long")

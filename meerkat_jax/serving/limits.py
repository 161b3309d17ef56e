"""What a request may cost: checked as early as it can be told, so that nobody pays for others."""

from __future__ import annotations

import asyncio
import dataclasses
import math

from starlette.requests import ClientDisconnect, Request

from meerkat_jax.data.audio import count_seconds
from meerkat_jax.data.image import read_size
from meerkat_jax.serving.refusals import Refused, bad


@dataclasses.dataclass(frozen=True)
class Limits:
    """body, bytes; pixels of a picture; sound, seconds; seconds from a request to its answer."""

    body: int = 32 << 20
    pixels: int = 40_000_000
    sound: float = 600.0
    seconds: float = 120.0


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, refused as soon as it is too large or too slow."""
    size = f"a request of more than {limits.body} bytes; send a smaller picture or sound"
    if int(request.headers.get("content-length") or 0) > limits.body:
        raise Refused(413, size, code="request_too_large")
    parts, count = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                parts.append(part)
                count += len(part)
                if count > limits.body:
                    raise Refused(413, size, code="request_too_large")
    except TimeoutError:
        message = f"the request did not arrive within {limits.seconds:g} s"
        raise Refused(408, message, code="request_timeout") from None
    except ClientDisconnect:
        raise Refused(499, "the client has gone", code="client_closed_request") from None
    return b"".join(parts)


def check_media(image: bytes | None, audio: bytes | None, limits: Limits) -> None:
    """Refuse what its header says is too large; what has no header is refused where it is read."""
    if image is not None:
        pixels = math.prod(read_size(image) or (0,))
        if pixels > limits.pixels:
            message = f"a picture of {pixels} pixels; expected at most {limits.pixels}"
            raise bad(message, "messages", "picture_too_large")
    if audio is not None:
        seconds = count_seconds(audio) or 0
        if seconds > limits.sound:
            message = f"a sound of {seconds:.1f} s; expected at most {limits.sound:g} s"
            raise bad(message, "messages", "sound_too_long")

"""Bodies of requests: how large one may be, how slow, and how much memory all have together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from meerkat_jax.serving.limits import Limits
from meerkat_jax.serving.refusals import Refused

PROGRESS = (
    256 << 10
)  # bytes that have to arrive within `Limits.stall` seconds, unless it is the end


class Bodies:
    """Reads bodies within the limits of each and of all."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.held = 0  # bytes of all bodies that are being read or decoded

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, counted as held until the `async with` ends: leave no reference to it behind.

        Raises Refused as soon as it is too large or too slow, or all bodies together are too large.
        """
        limits, body = self._limits, bytearray()
        if int(request.headers.get("content-length") or 0) > limits.body:
            raise self._too_large()
        try:
            async with contextlib.aclosing(self._parts(request)) as parts:
                async for part in parts:
                    body += part
                    self.held += len(part)
                    if len(body) > limits.body:
                        raise self._too_large()
                    if self.held > limits.bodies:
                        message = "too much is being sent at once; send it again in a second"
                        raise Refused(503, message, code="overloaded")
            yield body
        finally:
            self.held -= len(body)

    async def _parts(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes, while it comes."""
        limits, time, since = self._limits, asyncio.get_running_loop().time, 0
        end = time() + limits.seconds
        try:
            async with asyncio.timeout_at(min(time() + limits.stall, end)) as deadline:
                async for part in request.stream():
                    since += len(part)
                    if since >= PROGRESS:
                        deadline.reschedule(min(time() + limits.stall, end))
                        since = 0
                    yield part
        except TimeoutError:
            message = (
                f"the request came too slowly; expected {PROGRESS >> 10} KiB in each "
                f"{limits.stall:g} s, and all of it within {limits.seconds:g} s"
            )
            raise Refused(408, message, code="request_timeout") from None
        except ClientDisconnect:
            raise Refused(499, "the client has gone", code="client_closed_request") from None

    def _too_large(self) -> Refused:
        message = f"a request of more than {self._limits.body} bytes; send a smaller image or audio"
        return Refused(413, message, code="request_too_large")

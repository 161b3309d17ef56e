"""Connections with an end to whatever a client leaves half done, which uvicorn's own have not.

uvicorn closes a connection that is idle after an answer, but not one on which half a header was
sent, nor one whose client does not read what it asked for; and over its limit of connections it
refuses the newest, so that enough idle ones shut everyone out. Here a header has to come and an
answer to be read in time, and a new connection takes the place of the one that waits longest for a
request. h11, in Python, parses: it bounds what is incomplete (headers, sizes of chunks, trailers).
"""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # open at a time, below the 1,024 files that a process may usually have open
GRACE = 10  # seconds that answers under way have to end when the server does


class Connection(H11Protocol):
    """A connection that is aborted when its client is too slow."""

    header_seconds = 10.0  # from the connection, or from the last answer, to a whole header
    unread_seconds = 30.0  # for which what was written may stay unread
    _header_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for a header; over the limit, in the place of another that does."""
        super().connection_made(transport)
        self._time_header()
        if len(self.connections) > CONNECTIONS:
            waiting = [one for one in self.connections if one is not self and one._header_timer]
            if waiting:
                oldest = min(waiting, key=lambda one: one._header_timer.when())
                oldest._stop_timers()
                oldest.transport.abort()
                self.connections.discard(oldest)  # which uvloop does after it has read from us

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Perhaps the end of a header."""
        super().data_received(data)
        self._time_header()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._time_header()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def _time_header(self) -> None:
        """The timer runs while no request is under way."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way or self.transport.is_closing():
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_timers(self) -> None:
        for timer in (self._header_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._unread_timer = None


def make_server(app: ASGIApp) -> uvicorn.Server:
    """The HTTP server of an application; `run(sockets=[...])` serves until a signal comes."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        limit_concurrency=CONNECTIONS + 1,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)

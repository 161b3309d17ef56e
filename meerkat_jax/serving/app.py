"""The server's routes; the engine behind them answers, this only reads, waits and writes.

Requests are read and media decoded in a few worker threads, the loop never waits for the model: a
reply tells it when there is more. A client that goes away gives its row free.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meerkat_jax.core.errors import UserError
from meerkat_jax.inference.engine import SEEDS, Busy, Engine
from meerkat_jax.inference.stream import Reply
from meerkat_jax.serving.bodies import Bodies
from meerkat_jax.serving.chat import read_chat, unknown_model
from meerkat_jax.serving.completions import DONE, Shape, event
from meerkat_jax.serving.guard import HostGuard
from meerkat_jax.serving.limits import Limits, check_media
from meerkat_jax.serving.metrics import Metrics
from meerkat_jax.serving.refusals import Refused, bad

JSON = "application/json"
LOG = logging.getLogger("meerkat_jax.serving")


def make_app(
    engine: Engine,
    name: str,
    limits: Limits,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
) -> Starlette:
    """The application: `engine` is served as the model `name`, and closed when the server ends.

    It listens at `host` and answers to that name and `allowed_hosts` (serving/guard.py).
    """
    server = _Server(engine, name, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(engine.close)

    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.one_model),
        Route("/health", server.health),
        Route("/metrics", lambda _: server.metrics.response()),
    ]
    faults = {404: _unknown, 405: _unknown}
    guard = Middleware(HostGuard, host=host, allowed_hosts=allowed_hosts)
    return Starlette(
        routes=routes, exception_handlers=faults, lifespan=lifespan, middleware=[guard]
    )


class _Server:
    def __init__(self, engine: Engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.bodies = Bodies(limits)
        self.metrics, self.started = Metrics(engine), int(time.time())
        self.readers = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self.name:
            return unknown_model(name, self.name).response()
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        model = {"id": self.name, "object": "model", "created": self.started}
        return model | {"owned_by": "meerkat_jax"}

    async def health(self, _: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    async def chat(self, request: Request) -> Response:
        begun = time.monotonic()
        try:
            response = await self._chat(request, begun)
        except Refused as refused:
            response = refused.response()
        except Exception:  # whatever failed here, the next request is to be answered
            LOG.exception("a request failed")
            response = _failed().response()
        self.metrics.requests.labels(response.status_code).inc()
        return response

    async def _chat(self, request: Request, begun: float) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:  # which no page may send to another's server without its leave (CORS)
            message = f"Content-Type is {kind!r:.80}; expected {JSON}"
            raise Refused(415, message, code="unsupported_media_type")
        async with self.bodies.read(request) as body:
            run = functools.partial(anyio.to_thread.run_sync, limiter=self.readers)
            stream, usage, reply = await run(self._begin, body)
        del body  # which would be held until the answer ends
        shape, pieces = Shape(self.name), self._pieces(reply, begun)
        if stream:
            events = self._events(shape, reply, pieces, usage)
            return StreamingResponse(events, media_type="text/event-stream")
        gone = asyncio.ensure_future(_gone(request))
        whole = asyncio.ensure_future(_all(pieces))
        try:
            await asyncio.wait((gone, whole), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise Refused(499, "the client has gone", code="client_closed_request")
            await whole
        finally:
            gone.cancel()
            whole.cancel()
            reply.cancel()
        return JSONResponse(shape.whole(reply, reply.answer(0)))

    def _begin(self, body: bytearray) -> tuple[bool, bool, Reply]:
        """Read the request and ask, in a worker thread; whether to stream, and with the usage."""
        wanted = read_chat(body, self.name)
        check_media(wanted.image, wanted.audio, self.limits)
        most = self.engine.max_new if wanted.most is None else wanted.most
        seed = secrets.randbelow(SEEDS) if wanted.seed is None else wanted.seed % SEEDS
        try:
            reply = self.engine.ask(
                wanted.image, wanted.audio, wanted.prompt, wanted.turns, wanted.temperature, seed,
                wanted.grammar, min(most, self.engine.max_new),
            )  # fmt: skip
        except Busy as busy:
            raise Refused(429, str(busy), code="queue_full") from None
        except UserError as error:
            raise bad(str(error), "messages", "invalid_value") from None
        return wanted.stream, wanted.usage, reply

    async def _pieces(self, reply: Reply, begun: float) -> AsyncIterator[str]:
        """The text as it comes; when it is over, one way or the other, it is counted."""
        loop, changed, sent = asyncio.get_running_loop(), asyncio.Event(), ""

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(changed.set)

        reply.watch(tell)
        try:
            over = False
            while not over:
                changed.clear()
                text, over = reply.so_far(sent)
                if text != sent:
                    if not sent:
                        self.metrics.first.observe(time.monotonic() - begun)
                    yield text[len(sent) :]
                    sent = text
                elif not over:
                    async with asyncio.timeout(self._left(begun)):
                        await changed.wait()
        except TimeoutError:
            message = f"no answer within {self.limits.seconds:g} s"
            raise Refused(504, message, code="timeout") from None
        finally:
            reply.cancel()
            self._count(reply, begun)

    def _left(self, begun: float) -> float:
        return self.limits.seconds - (time.monotonic() - begun)

    def _count(self, reply: Reply, begun: float) -> None:
        self.metrics.latency.observe(time.monotonic() - begun)
        self.metrics.answers.labels(reply.finish or "failed").inc()
        self.metrics.tokens.labels("prompt").inc(reply.prompt_tokens)
        self.metrics.tokens.labels("answer").inc(reply.new_tokens)

    async def _events(
        self, shape: Shape, reply: Reply, pieces: AsyncIterator[str], usage: bool
    ) -> AsyncIterator[bytes]:
        """A stream; what fails after its beginning is told in it."""
        async with contextlib.aclosing(pieces):
            try:
                yield shape.piece("", first=True)
                async for piece in pieces:
                    yield shape.piece(piece)
                yield shape.last(reply, reply.answer(0))
                if usage:
                    yield shape.usage(reply)
                yield DONE
            except Refused as refused:
                yield event(refused.to_json())
            except Exception:  # the status has been sent: the stream itself must say so
                LOG.exception("an answer failed")
                yield event(_failed().to_json())


async def _all(pieces: AsyncIterator[str]) -> None:
    async with contextlib.aclosing(pieces):
        async for _ in pieces:
            pass


async def _gone(request: Request) -> None:
    """Until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed() -> Refused:
    return Refused(500, "the answer failed; the server's log says why", code="internal_error")


def _unknown(request: Request, error: Any) -> Response:
    message = f"{request.method} {request.url.path} is not served"
    return Refused(error.status_code, message, code="unknown_url").response()

"""A server in a thread, on a port of its own, and what is sent to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
from starlette.types import ASGIApp

from meerkat_jax.inference.engine import Engine
from meerkat_jax.serving.app import make_app
from meerkat_jax.serving.connections import make_server
from meerkat_jax.serving.limits import Limits
from tests.inference.made import model, png, tone, wav

NAME = "tiny"
PROMPT = "What makes this sound?"


@contextlib.contextmanager
def running(limits: Limits, **sizes: int) -> Iterator[tuple[str, Engine]]:
    """The address of a server of the made model, and its engine; ended in good order."""
    engine = Engine(model(), **sizes)
    with listening(make_app(engine, NAME, limits)) as url:
        yield url, engine
    assert not engine.alive


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The address of a server of any application."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def client(url: str) -> openai.OpenAI:
    """The official client; it does not try again."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def until(condition, seconds: float = 30.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def audio_part(data: bytes, kind: str = "wav") -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": kind}}


def pair_of(number: int) -> tuple[bytes, bytes]:
    return png(number), wav(tone(300 + 200 * number))


def user(prompt: str, number: int | None = None) -> dict[str, Any]:
    """A message of the user, about pair `number` if that is given."""
    if number is None:
        return {"role": "user", "content": prompt}
    image, audio = pair_of(number)
    parts = [image_part(data_url(image)), audio_part(audio), {"type": "text", "text": prompt}]
    return {"role": "user", "content": parts}


def body(prompt: str = PROMPT, number: int | None = 0, **fields: Any) -> bytes:
    """A whole request."""
    return json.dumps({"model": NAME, "messages": [user(prompt, number)]} | fields).encode()


def raw(url: str, head: str, *parts: bytes) -> socket.socket:
    """A connection on which a POST with `head` and the parts of a body was sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    lines = f"{start}Content-Type: application/json\r\n{head}\r\n\r\n"
    connection.sendall(lines.encode() + b"".join(parts))
    return connection


def status(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the answer; the connection is closed."""
    with connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())

"""What clients leave half done ends, and what they send is bounded: a real server, no model."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meerkat_jax.serving import connections
from meerkat_jax.serving.bodies import Bodies
from meerkat_jax.serving.connections import Connection
from meerkat_jax.serving.limits import Limits
from meerkat_jax.serving.refusals import Refused
from tests.serving.running import listening, raw, status, until

MEGABYTE = 1 << 20
HALF = b"GET / HTTP/1.1\r\nHost: local"
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def app(bodies: Bodies) -> Starlette:
    async def length(request):
        try:
            async with bodies.read(request) as body:
                return JSONResponse({"length": len(body)})
        except Refused as refused:
            return refused.response()

    async def large(_):
        return Response(bytes(32 * MEGABYTE))

    paths = {"/": lambda _: JSONResponse({}), "/large": large}
    routes = [Route("/v1/chat/completions", length, methods=["POST"])]
    return Starlette(routes=routes + [Route(path, run) for path, run in paths.items()])


def opened(url: str, sent: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> float:
    """Seconds until the server has ended a connection, whatever it sends before."""
    begin = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begin


@pytest.fixture
def bodies():
    return Bodies(Limits(body=4 * MEGABYTE, bodies=6 * MEGABYTE, seconds=3, stall=0.6))


@pytest.fixture
def url(bodies, monkeypatch):
    monkeypatch.setattr(Connection, "header_seconds", 0.5)
    monkeypatch.setattr(Connection, "unread_seconds", 0.5)
    with listening(app(bodies)) as url:
        yield url


@pytest.mark.parametrize("sent", [b"", HALF, WHOLE + HALF], ids=["nothing", "half", "and a half"])
def test_half_a_header_ends_in_time(url, sent):
    assert 0.3 < ended(opened(url, sent)) < 3


def test_a_header_a_byte_at_a_time_ends_too(url):
    with opened(url, b"GET / HTTP/1.1\r\n") as connection, pytest.raises(ConnectionError):
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)


def test_a_header_without_end_is_refused(url):
    with opened(url, b"GET / HTTP/1.1\r\nA: " + b"a" * 300_000) as connection:
        assert b"400" in connection.recv(100)


def test_an_answer_that_nobody_reads_ends(url):
    with opened(url, WHOLE.replace(b" / ", b" /large ")) as connection:
        time.sleep(1.5)
        count = 0
        with pytest.raises(ConnectionError):
            while part := connection.recv(65536):
                count += len(part)
            raise ConnectionError
        assert count < 32 * MEGABYTE


def test_idle_connections_shut_nobody_out(monkeypatch):
    """The oldest that waits for a request goes; one with a request under way stays."""
    monkeypatch.setattr(connections, "CONNECTIONS", 20)
    with listening(app(Bodies(Limits()))) as url:
        first = raw(url, "Content-Length: 5", b"123")
        time.sleep(0.2)
        idle = [opened(url, HALF) for _ in range(60)]
        for _ in range(3):
            with opened(url, WHOLE) as connection:
                assert b"200 OK" in connection.recv(100)
        assert ended(idle[0]) < 1
        idle[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)
        first.sendall(b"45")
        assert status(first) == (200, {"length": 5})
        for connection in idle:
            connection.close()


def test_bodies_that_stall_are_bounded_together_and_end(url, bodies):
    """Two of 3 MiB are held; a third is refused, to come again, until they are given up."""
    head = f"Content-Length: {4 * MEGABYTE}"
    begin, stalled = time.monotonic(), [raw(url, head, bytes(3 * MEGABYTE)) for _ in range(2)]
    until(lambda: bodies.held == 6 * MEGABYTE)
    with raw(url, head, bytes(1000)) as third:
        answer = third.recv(4096)
        assert b"503" in answer and b"retry-after: 1" in answer and b"overloaded" in answer
    for connection in stalled:
        code, found = status(connection)
        assert code == 408 and "too slowly; expected 256 KiB in each 0.6 s" in str(found)
    assert 0.5 < time.monotonic() - begin < 3 and bodies.held == 0
    assert status(raw(url, "Content-Length: 1000", bytes(1000))) == (200, {"length": 1000})


def test_a_body_may_take_its_time_while_it_comes_but_not_for_ever(url):
    def send(connection: socket.socket) -> None:
        try:
            for _ in range(100):
                connection.sendall(bytes(MEGABYTE // 3))
                time.sleep(0.4)
        except OSError:
            pass

    slow = raw(url, f"Content-Length: {4 * MEGABYTE}")
    threading.Thread(target=send, args=(slow,)).start()
    begin = time.monotonic()
    assert b"408" in slow.recv(20)
    assert 2.5 < time.monotonic() - begin < 5
    slow.close()


def test_who_goes_away_leaves_nothing_behind(url, bodies):
    raw(url, f"Content-Length: {4 * MEGABYTE}", bytes(MEGABYTE)).close()
    until(lambda: bodies.held == 0)
    assert status(raw(url, "Content-Length: 0")) == (200, {"length": 0})

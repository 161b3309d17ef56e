"""A page of another's cannot use the server: by Host, by Origin, and by the type of its body."""

from __future__ import annotations

import http.client
import json

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from meerkat_jax.serving.guard import HostGuard
from meerkat_jax.serving.limits import Limits
from tests.serving.running import body, listening, running


def app(**named) -> Starlette:
    routes = [Route("/", lambda _: PlainTextResponse("image_labels"), methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[Middleware(HostGuard, **named)])


def ask(url: str, method: str = "GET", path: str = "/", body: bytes = b"", **headers: str):
    """(status, JSON or text) with exactly these headers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


@pytest.fixture(scope="module")
def local():
    with listening(app(host="127.0.0.1")) as url:
        yield url


@pytest.fixture(scope="module")
def named():
    with listening(app(host="0.0.0.0", allowed_hosts=["Demo.example"])) as url:
        yield url


OURS = ("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "[::1]:80", "192.168.0.5")
NOT_OURS = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "",
            "evil.example@127.0.0.1x", "[::1", "demo.example")  # fmt: skip


def test_host_has_to_be_a_name_of_the_server(local, named):
    for host in OURS:
        assert ask(local, Host=host) == ask(named, Host=host) == (200, "image_labels"), host
    for host in NOT_OURS:
        code, found = ask(local, Host=host)
        assert code == 403 and found["error"]["code"] == "host_not_allowed", host
        assert "--allowed_hosts" in found["error"]["message"]
    assert ask(named, Host="demo.example:443") == (200, "image_labels")
    assert ask(named, Host="other.example")[0] == 403
    with listening(app(host="box.lan", allowed_hosts=["*"])) as anyones:
        assert ask(anyones, Host="evil.example") == (200, "image_labels")


def test_origin_has_to_be_the_servers_own_page(local, named):
    for origin in ("http://localhost:8000", "https://localhost:8000"):
        assert ask(local, "POST", Host="localhost:8000", Origin=origin) == (200, "image_labels")
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://localhost", ""):
        code, found = ask(local, "POST", Host="localhost:8000", Origin=origin)
        assert code == 403 and found["error"]["code"] == "origin_not_allowed", origin
    # A proxy may tell the server another Host than the page has.
    assert ask(named, Host="10.0.0.1", Origin="https://demo.example:8443") == (200, "image_labels")
    assert ask(named, Host="10.0.0.1", Origin="https://evil.example")[0] == 403


def test_serve_takes_json_alone_and_is_guarded():
    with running(Limits(), slots=1) as (url, _):
        path, sent = "/v1/chat/completions", body()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "text/json", ""):
            code, found = ask(url, "POST", path, sent, Host="localhost", Content_Type=kind)
            assert code == 415 and found["error"]["code"] == "unsupported_media_type"
            assert "expected application/json" in found["error"]["message"]
        assert ask(url, "POST", path, sent, Host="localhost")[0] == 415
        for kind in ("application/json", "Application/JSON; charset=utf-8"):
            code, found = ask(url, "POST", path, b"{", Host="localhost", Content_Type=kind)
            assert code == 400 and found["error"]["code"] == "invalid_json"
        assert ask(url, path="/v1/models", Host="evil.example")[0] == 403
        code, found = ask(url, "OPTIONS", path, Host="localhost", Origin="http://localhost")
        assert code == 405 and "is not served" in found["error"]["message"]  # no CORS

"""Keeps web pages of others from using a server through the browser of one who may reach it.

A page may send requests to any address that its visitor's browser reaches, 127.0.0.1 among them,
and by DNS rebinding (its own name, which now means 127.0.0.1) it may read the answers too. Two
headers tell, which no page can change: Host is what the browser was told to ask, Origin the page.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from meerkat_jax.serving.refusals import Refused

ALL = ("0.0.0.0", "::", "")  # addresses that mean all of the machine's
ANY = "*"  # of allowed_hosts: Host is not checked


class HostGuard:
    """ASGI middleware that refuses requests to a name that is not ours, or from another's page.

    Ours are any IP address (rebinding needs a name), localhost, `host` or with one of ALL this
    machine's name, and `allowed_hosts`. A page is another's when Origin is neither what Host is nor
    among `allowed_hosts`. No CORS header is sent, so that other pages can read no answer.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Iterable[str] = ()):
        own = socket.gethostname() if host in ALL else host
        self.app, self.allowed = app, {name.lower() for name in allowed_hosts}
        self.ours = {"localhost", own.lower(), *self.allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the application, or let it."""
        if scope["type"] == "http" and (refused := self._refused(Headers(scope=scope))):
            await refused.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refused(self, headers: Headers) -> Refused | None:
        host, origin = headers.get("host"), headers.get("origin")
        # Whoever sends no Host (HTTP/1.0) is no browser.
        if host is not None and not self._is_ours(_name(host)):
            message = (
                f"Host is {host!r:.100}, which is no name of this server; --allowed_hosts adds"
            )
            return Refused(403, message, code="host_not_allowed")
        if origin is None:
            return None
        place = origin.partition("://")[2]
        if place.lower() != (host or "").lower() and _name(place) not in self.allowed:
            message = f"a page of {origin!r:.100} may not use this server; --allowed_hosts adds"
            return Refused(403, message, code="origin_not_allowed")
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self.ours or ANY in self.allowed:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(place: str) -> str:
    """The name or address in `name:port` or `[address]:port`, in small letters; else ""."""
    try:
        return (urlsplit(f"//{place}").hostname or "").rstrip(".")
    except ValueError:
        return ""

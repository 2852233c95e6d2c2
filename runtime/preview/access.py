"""Who may see the preview: this machine alone, or whoever has the token."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
from urllib.parse import urlsplit

from aiohttp import web
from diinn.runtime.errors import InputError

TOKEN_VARIABLE = "DIINN_TOKEN"
LEAST_TOKEN = 16  # characters
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Address:
    """Where to listen: a bound socket, and whether others than this machine can reach it.

    text: ``HOST:PORT``, ``[::1]:PORT`` or ``HOST`` (port 8080). InputError for what cannot be bound."""

    def __init__(self, text: str) -> None:
        parts = urlsplit(f"//{text}")
        try:
            self.host, port = parts.hostname or "", parts.port
        except ValueError:
            self.host, port = "", None
        if not self.host or parts.path not in ("", "/") or parts.username is not None:
            raise InputError(
                f"http://{text.rpartition('@')[2]} is no address for the preview: write http://127.0.0.1:8080"
            )
        port = 8080 if port is None else port
        try:
            family, kind, _, _, address = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family, kind)
        except OSError as error:
            raise InputError(f"http://{text}: {error.strerror}: write http://127.0.0.1:8080") from None
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(64)
        except OSError as error:
            self.socket.close()
            raise InputError(
                f"cannot listen on http://{text}: {error.strerror}: choose another port, such as {port % 65535 + 1}"
            ) from None
        self.port: int = self.socket.getsockname()[1]
        self.local = ipaddress.ip_address(self.socket.getsockname()[0]).is_loopback

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class Guard:
    """Lets requests in or turns them away.

    Without a token (on loopback) a page of another site must not get in through the visitor's browser: the ``Host`` a
    request names must be this machine. A WebSocket must come from our own page in any case.
    """

    def __init__(self, address: Address) -> None:
        self._cookie = f"diinn_{address.port}"
        self.token = None if address.local else _token()

    def check(self, request: web.Request) -> None:
        """HTTPUnauthorized or HTTPForbidden unless the request may be answered."""
        if self.token is None:
            if _name(request.host) not in LOCAL_NAMES:
                raise web.HTTPForbidden(text="this preview is for this machine alone: open it as http://localhost\n")
        elif not self._has_token(request):
            raise web.HTTPUnauthorized(
                text="a token is wanted: open the address that diinn-run printed\n",
                headers={"WWW-Authenticate": "Bearer"},
            )
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="this page belongs to another site\n")

    def _has_token(self, request: web.Request) -> bool:
        assert self.token is not None
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = (request.query.get("token"), request.cookies.get(self._cookie), bearer)
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given if one)

    def admit(self, request: web.Request) -> None:
        """After a page was opened with the token in its address: go on without it there, with a cookie."""
        if self.token is not None and "token" in request.query:
            answer = web.HTTPSeeOther("/")
            answer.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict")
            raise answer


def _name(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


def _token() -> str:
    given = os.environ.get(TOKEN_VARIABLE)
    if given is None:
        return secrets.token_urlsafe(24)
    if len(given) < LEAST_TOKEN or not given.isascii() or not given.isprintable() or any(c in given for c in ' ;,"\\'):
        raise InputError(f"{TOKEN_VARIABLE} is no token: use {LEAST_TOKEN} or more letters, digits, - and _")
    return given

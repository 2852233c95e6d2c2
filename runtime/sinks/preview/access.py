"""Access to the preview: from this machine alone, or with the token."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import os
import re
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

    text: ``HOST:PORT``, ``[::1]:PORT`` or ``HOST`` (port 8080). InputError for what cannot be bound.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(f"//{text}")
            self.host, port = parts.hostname or "", parts.port
            bare = parts.path in ("", "/") and parts.username is None and not parts.query
        except ValueError:
            self.host, port, bare = "", None, False
        if not (self.host and bare):
            raise InputError(
                f"http://{text.rpartition('@')[2]} is no address for the preview: write http://127.0.0.1:8080"
            )
        port = 8080 if port is None else port
        try:
            family, kind, _, _, address = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family, kind)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such host"
            raise InputError(f"http://{text}: {reason}: write http://127.0.0.1:8080") from None
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(64)
        except OSError as error:
            self.socket.close()
            remedies = {
                errno.EADDRNOTAVAIL: "use 127.0.0.1, 0.0.0.0 or an address of this machine",
                errno.EACCES: "choose a port above 1023",
            }
            remedy = remedies.get(error.errno or 0, f"choose another port, such as {port % 65535 + 1}")
            raise InputError(f"cannot listen on http://{text}: {error.strerror}: {remedy}") from None
        self.port: int = self.socket.getsockname()[1]
        self.bound: str = self.socket.getsockname()[0]
        self.local = ipaddress.ip_address(self.bound).is_loopback

    @property
    def url(self) -> str:
        return self._as_url(self.host)

    @property
    def reachable(self) -> str:
        """The host for other machines' browsers, where all addresses of this machine are bound."""
        return self._as_url(socket.gethostname()) if ipaddress.ip_address(self.bound).is_unspecified else self.url

    def _as_url(self, host: str) -> str:
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class RequestGuard:
    """Lets requests in or turns them away.

    Without a token (on loopback) a page of another site must not get in through the visitor's browser: the ``Host`` a
    request names must be this machine. A WebSocket must come from our own page in any case.
    """

    def __init__(self, address: Address) -> None:
        self._port, self._cookie = address.port, f"diinn_{address.port}"
        self._names = {*LOCAL_NAMES, address.host.lower(), address.bound}
        self.token = None if address.local else _token()

    def check(self, request: web.Request) -> None:
        """HTTPUnauthorized or HTTPForbidden unless the request may be answered."""
        if self.token is None:
            if _host(f"//{request.host}") not in self._names:
                raise web.HTTPForbidden(
                    text=f"this preview is for this machine alone: open it as http://localhost:{self._port}\n"
                )
        elif not self._has_token(request):
            raise web.HTTPUnauthorized(
                text="a token is wanted: open the address that diinn-run printed\n",
                headers={"WWW-Authenticate": "Bearer"},
            )
        origin = request.headers.get("Origin")
        foreign = request.headers.get("Sec-Fetch-Site") == "cross-site" and request.path != "/"
        if foreign or (origin is not None and origin.partition("://")[2] != request.host):
            raise web.HTTPForbidden(text="this page belongs to another site\n")

    def _has_token(self, request: web.Request) -> bool:
        assert self.token is not None
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = (request.query.get("token"), request.cookies.get(self._cookie), bearer)
        words = [one.encode("utf-8", "surrogateescape") for one in given if one]
        return any(hmac.compare_digest(word, self.token.encode()) for word in words)

    def admit(self, request: web.Request) -> None:
        """After a page was opened with the token in its address: go on without it there, with a cookie."""
        if self.token is not None and "token" in request.query:
            answer = web.HTTPSeeOther("/")
            answer.set_cookie(self._cookie, self.token, httponly=True, samesite="Lax")
            raise answer


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _token() -> str:
    given = os.environ.get(TOKEN_VARIABLE)
    if not given:
        return secrets.token_urlsafe(24)
    if re.fullmatch(rf"[A-Za-z0-9_-]{{{LEAST_TOKEN},}}", given) is None:  # as it stands in an address
        raise InputError(f"{TOKEN_VARIABLE} is no token: use {LEAST_TOKEN} or more letters, digits, - and _")
    return given

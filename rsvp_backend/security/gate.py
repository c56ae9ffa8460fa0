"""`Gate`: what is asked of every request before any route sees it, and before a byte of its body is read.

What a path needs is listed here, not at the routes: a route that nobody thought of needs basic auth.
"""

from __future__ import annotations

import ipaddress
import logging

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rsvp_backend.security.bodies import limited, too_large
from rsvp_backend.security.credentials import Credentials, is_loopback
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)

SETTING = "RSVP_MAX_BODY_BYTES"
_SHARE_OF_SMALL = 16
"""Only /predict brings many tasks at once."""
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


class Gate:
    """ASGI middleware. /health is open to probes, /webhook has its own secret, all else needs basic auth."""

    def __init__(self, app: ASGIApp, settings: Settings, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials
        self._max_bytes = settings.max_body_bytes
        # A page that has its own name point to this machine could read what nobody needs a password for.
        self._checks_name = credentials.user is None and not settings.allow_no_auth and is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        limit = self._max_bytes if scope["path"] == "/predict" else max(1, self._max_bytes // _SHARE_OF_SMALL)
        setting = SETTING if scope["path"] == "/predict" else f"a {_SHARE_OF_SMALL}th of {SETTING}"
        refusal = self._refusal(request) or _size_refusal(request, limit, setting)
        if refusal is not None:
            return await refusal(scope, receive, send)
        try:
            await self._app(scope, limited(receive, limit, setting), send)
        except ClientDisconnect:
            log.info("%s %s: hung up in the middle of the body", request.method, scope["path"])

    def _refusal(self, request: Request) -> Response | None:
        if self._checks_name and not _is_own_name(request.headers.get("host", "")):
            return _reply(421, "this name is not one of this machine's: set RSVP_BASIC_AUTH_USER and "
                          "RSVP_BASIC_AUTH_PASSWORD, or RSVP_ALLOW_NO_AUTH=true behind a proxy")  # fmt: skip
        if request.method in _UNSAFE and _is_of_other_site(request.headers):
            return _reply(403, "this came from a page of another site")
        if not self._passes(request.scope["path"], request.headers):
            answer = _reply(401, "wrong or no credentials")
            answer.headers["WWW-Authenticate"] = "Basic"
            return answer
        return None

    def _passes(self, path: str, headers: Headers) -> bool:
        """Label Studio explains a 401 of /health in words: so a wrong password is told there, none is not."""
        if path == "/health" and "authorization" not in headers:
            return True
        if path == "/webhook":
            return self._credentials.webhook(headers)
        return self._credentials.basic(headers)


def _is_of_other_site(headers: Headers) -> bool:
    """By what browsers tell; other callers tell nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _size_refusal(request: Request, limit: int, setting: str) -> Response | None:
    """By what it announces; what it really sends is counted as it comes."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 15 or int(announced) > limit):
        return _reply(413, too_large(limit, setting).detail)
    return None


def _reply(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


def _is_own_name(host: str) -> bool:
    """Whether a ``Host`` is none that a stranger can point here: an address, a name without a dot, or one that the
    public name system does not have."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return "." not in name or name.lower().endswith((".localhost", ".internal"))
    return True

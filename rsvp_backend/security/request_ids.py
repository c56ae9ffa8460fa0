"""An id for each request: in every line that is logged on its way, in its traces and in its reply.

A caller may bring its own in ``X-Request-Id``, so that its log and this one can be laid side by side.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id() -> str | None:
    """The id of the request that is worked for here; None outside of one.

    It follows into coroutines and `run_in_threadpool`; other threads are given it with the context they run in.
    """
    return _current.get()


class RequestIds:
    """ASGI middleware. A brought id that is long, or has other characters than an id's, is replaced by a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        brought = Headers(scope=scope).get(HEADER, "")
        name = brought if _SANE.fullmatch(brought) else secrets.token_hex(8)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = name
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        token = _current.set(name)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _current.reset(token)

"""Replies that can always be written, whatever the texts in them are made of."""

from __future__ import annotations

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse


class AsciiJson(JSONResponse):
    """JSON in ASCII: a model's answer may hold lone surrogates, which UTF-8 has no form for."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


async def unreadable(_: Request, error: Exception) -> JSONResponse:
    """422 for a body of another form: where and why, without what was sent."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    return AsciiJson({"detail": [{"loc": one["loc"], "msg": one["msg"]} for one in details]}, 422)

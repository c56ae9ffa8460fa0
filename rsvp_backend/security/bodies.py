"""Request bodies: how many bytes of one are taken, for how long, and what of their JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from rsvp_backend.errors import RsvpError

JSON = dict[str, Any]
MAX_DEPTH = 64
BODY_S = 60.0
"""For a body to arrive as a whole."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What neither a database nor UTF-8 takes."""
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


class BodyError(RsvpError):
    """The body is not what the route takes."""


def limited(receive: Receive, limit_bytes: int, setting: str) -> Receive:
    """``receive`` that counts: raises `HTTPException` 413 past ``limit_bytes``, and 408 past `BODY_S`."""
    taken, complete, until_s = 0, False, time.monotonic() + BODY_S

    async def counted() -> Message:
        nonlocal taken, complete
        if complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until_s - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_S:g} s") from None
        taken += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if taken > limit_bytes:
            raise too_large(limit_bytes, setting)
        return message

    return counted


def too_large(limit_bytes: int, setting: str) -> HTTPException:
    return HTTPException(413, f"the body has more than {limit_bytes} bytes ({setting})")


def read_object(raw: bytes) -> JSON:
    """A JSON object, `cleaned`. Raises `BodyError`."""
    try:
        value = cleaned(_DECODER.decode(raw.decode()))
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise BodyError(f"the body is not JSON that is taken here: {ascii(str(error))[1:200]}") from None
    if not isinstance(value, dict):
        raise BodyError("the body is no JSON object")
    return value


def cleaned(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A JSON value without what cannot be stored or sent on: lone surrogates and NUL in texts become U+FFFD, numbers
    past the floats' range null. Raises `ValueError` for what is nested deeper than ``depth``."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list):
        return [one if type(one) is int else cleaned(one, depth - 1) for one in value]
    return {cleaned(key): cleaned(one, depth - 1) for key, one in value.items()}

"""An HTTP client for the openai package whose replies end at a size and a time limit, whatever their status.

The package reads replies with an error status by itself, as a whole, and a timeout counts anew for every read.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai

from rsvp_backend.types import Deadline

MAX_REPLY_BYTES = 2 * 1024 * 1024
_UNTIL = "rsvp_until"


class TooLongError(Exception):
    """The reply has more than `MAX_REPLY_BYTES`."""


class _BoundedStream(httpx2.SyncByteStream):
    """A reply's bytes, as long as they keep to the limits. Raises `TooLongError` and `httpx2.ReadTimeout`."""

    def __init__(self, stream: httpx2.SyncByteStream, until: Deadline) -> None:
        self._stream, self._until = stream, until

    def __iter__(self) -> Iterator[bytes]:
        seen_bytes = 0
        for piece in self._stream:
            seen_bytes += len(piece)
            if seen_bytes > MAX_REPLY_BYTES:
                raise TooLongError
            if self._until.expired:
                raise httpx2.ReadTimeout("the reply comes too slowly")
            yield piece

    def close(self) -> None:
        self._stream.close()


def bounded_client() -> httpx2.Client:
    """Each request's read timeout is the time for the whole of it, from its first byte to the reply's last."""
    return openai.DefaultHttpxClient(
        event_hooks={"request": [_start], "response": [_bound]},
        headers={"Accept-Encoding": "identity"},  # a packed reply could grow beyond the limit
    )


def _start(request: httpx2.Request) -> None:
    request.extensions[_UNTIL] = Deadline.after(request.extensions["timeout"]["read"])


def _bound(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _BoundedStream(response.stream, response.request.extensions[_UNTIL])

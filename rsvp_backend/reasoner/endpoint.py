"""One OpenAI-compatible HTTP endpoint: a chat request out, a reply's JSON back, within a deadline.

Retries are ours and not the client's, since each wait must fit into the request's deadline. Replies are read in
pieces, so that a slow or endless one ends at the time and size limits.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx2
import openai

from rsvp_backend.errors import DeadlineError, ReasonerError
from rsvp_backend.reasoner.text import one_line
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
MAX_REPLY_BYTES = 2 * 1024 * 1024
CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.5
_RETRIED_STATUS = frozenset({408, 409, 429})
_ADVICE = {401: "check the API key", 403: "check the API key", 404: "check base URL and model name"}


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """``retries``: further tries after a refused connection, 408, 409, 429 or 5xx."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retries: int = 2


class RefusedError(Exception):
    """The endpoint calls the request invalid (400 or 422); the message holds its reason."""


class _PassingError(Exception):
    """A failure that may pass. ``after_s``: the wait that the endpoint asks for."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Endpoint:
    """Safe to call from several threads. Making one sends nothing."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._client = openai.OpenAI(base_url=config.base_url, api_key=config.api_key or "none", max_retries=0)

    def chat(self, body: dict[str, Any], deadline: Deadline | None) -> dict[str, Any]:
        """POST ``body`` to ``chat/completions``, again after failures that may pass, as time and retries allow.

        Raises `RefusedError`, `ReasonerError`, `DeadlineError`.
        """
        for attempt in range(self.config.retries + 1):
            try:
                return self._send(body, deadline)
            except _PassingError as failure:
                message, after_s = str(failure), failure.after_s
            if attempt == self.config.retries:
                break
            wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25) if after_s is None else after_s
            if wait_s >= self._time_left_s(deadline):
                raise ReasonerError(f"{message}; no time is left to wait {wait_s:.1f} s for another try")
            log.info("%s; trying again in %.1f s", message, wait_s)
            time.sleep(wait_s)
        raise ReasonerError(f"{message} (tried {self.config.retries + 1} times)")

    def _time_left_s(self, deadline: Deadline | None) -> float:
        if deadline is None:
            return self.config.timeout_s
        if deadline.expired:
            raise DeadlineError(f"the time of this request was over before {self.config.base_url} gave an answer")
        return min(self.config.timeout_s, deadline.remaining_s)

    def _send(self, body: dict[str, Any], deadline: Deadline | None) -> dict[str, Any]:
        timeout_s = self._time_left_s(deadline)
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        create: Any = self._client.chat.completions.with_streaming_response.create
        try:
            with create(**body, timeout=timeout) as response:
                return self._reply(response, Deadline.after(timeout_s))
        except openai.APIStatusError as error:
            raise self._status_failure(error) from None
        except (openai.APITimeoutError, httpx2.TimeoutException):
            self._timed_out(timeout_s, deadline)
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            reason = self._readable(str(error.__cause__ or error))
            raise _PassingError(f"{self.config.base_url} cannot be reached or broke off: {reason}") from None

    def _reply(self, response: Any, until: Deadline) -> dict[str, Any]:
        reply = bytearray()
        for piece in response.iter_bytes():
            reply += piece
            if len(reply) > MAX_REPLY_BYTES:
                raise ReasonerError(
                    f"{self.config.base_url} sends more than {MAX_REPLY_BYTES} bytes: no answer is so long"
                )
            if until.expired:
                raise httpx2.ReadTimeout("the reply comes too slowly")
        try:
            completion = json.loads(reply)
        except (ValueError, RecursionError):
            completion = None
        if isinstance(completion, dict):
            return completion
        seen = f"{len(reply)} bytes of {response.headers.get('content-type', 'no content type')}"
        raise ReasonerError(f"{self.config.base_url} sends no JSON object but {seen}: check the base URL")

    def _timed_out(self, timeout_s: float, deadline: Deadline | None) -> NoReturn:
        self._time_left_s(deadline)
        raise ReasonerError(
            f"{self.config.base_url} gave no answer within {timeout_s:.3g} s: raise the reasoner's timeout"
        )

    def _status_failure(self, error: openai.APIStatusError) -> Exception:
        """What an HTTP error status means: refused, passing, or final."""
        status, reason = error.status_code, self._readable(error.message)
        if status in (400, 422):
            return RefusedError(reason)
        message = f"{self.config.base_url} answers {status}: {reason}"
        if status in _RETRIED_STATUS or status >= 500:
            return _PassingError(message, _seconds(error.response.headers.get("retry-after")))
        return ReasonerError(f"{message}; {_ADVICE.get(status, 'check the reasoner in the settings')}")

    def _readable(self, text: str) -> str:
        """An endpoint's own words for a message: short, on one line, without the API key."""
        if self.config.api_key:
            text = text.replace(self.config.api_key, "***")
        return one_line(text)[:300]


def _seconds(header: str | None) -> float | None:
    """The wait in a Retry-After header, where it is given in seconds."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None

"""One OpenAI-compatible HTTP endpoint: a chat request out, a reply's JSON back, within a deadline.

Retries are ours and not the client's, since each wait must fit into the request's deadline.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from rsvp_backend.errors import DeadlineError, ReasonerError
from rsvp_backend.reasoner.bounded import MAX_REPLY_BYTES, TooLongError, bounded_client
from rsvp_backend.reasoner.text import one_line
from rsvp_backend.reasoner.usage import Call, Meter, Result
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.5
_RETRIED_STATUS = frozenset({408, 409, 429})
_REFUSED_STATUS = frozenset({400, 413, 422})
_SPENT = "insufficient_quota"
_ADVICE = {
    401: "check the API key (RSVP_REASONER_API_KEY)",
    403: "check the API key (RSVP_REASONER_API_KEY)",
    404: "check base URL and model name",
    429: "check the account's plan and credit",
}


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """``retries``: further tries after a refused connection, 408, 409, 429 or 5xx. ``concurrency``: calls at a time."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retries: int = 2
    concurrency: int = 4

    @property
    def shown_url(self) -> str:
        """The base URL for messages, without a user and password in it."""
        scheme, _, rest = self.base_url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


class RefusedError(Exception):
    """The endpoint calls the request invalid (400, 422) or too large (413); the message holds its reason."""

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class _PassingError(Exception):
    """A failure that may pass. ``after_s``: the wait that the endpoint asks for."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Endpoint:
    """Safe to call from several threads. Making one sends nothing."""

    def __init__(self, config: EndpointConfig, meter: Meter | None = None) -> None:
        self.config = config
        self.meter = meter or Meter(config.shown_url)
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=config.api_key or "none",
            max_retries=0,
            http_client=bounded_client(),
        )
        self._slots = threading.BoundedSemaphore(config.concurrency)

    def chat(self, body: dict[str, Any], deadline: Deadline | None) -> dict[str, Any]:
        """POST ``body`` to ``chat/completions``, again after failures that may pass, as time and retries allow.

        Raises `RefusedError`, `ReasonerError`, `DeadlineError`.
        """
        # The slot is kept during waits: an endpoint that asks for patience gets no other call in the meantime.
        with self._slot(deadline):
            for attempt in range(self.config.retries + 1):
                try:
                    return self._send(body, deadline)
                except _PassingError as failure:
                    message, after_s = str(failure), failure.after_s
                if attempt < self.config.retries:
                    self._wait(attempt, after_s, message, deadline)
        raise ReasonerError(f"{message} (tried {self.config.retries + 1} times)")

    @contextmanager
    def _slot(self, deadline: Deadline | None) -> Iterator[None]:
        left_s = self._time_left_s(deadline)
        if not self._slots.acquire(timeout=left_s):
            self._time_left_s(deadline)
            raise ReasonerError(
                f"{self.config.concurrency} calls to {self.config.shown_url} are under way, none ended within "
                f"{left_s:.3g} s: raise RSVP_REASONER_CONCURRENCY or RSVP_REASONER_TIMEOUT_S"
            )
        try:
            yield
        finally:
            self._slots.release()

    def _wait(self, attempt: int, after_s: float | None, message: str, deadline: Deadline | None) -> None:
        wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25) if after_s is None else after_s
        if wait_s >= self._time_left_s(deadline):
            raise ReasonerError(f"{message}; no time is left to wait {wait_s:.1f} s for another try")
        log.info("%s; trying again in %.1f s", message, wait_s)
        time.sleep(wait_s)

    def _time_left_s(self, deadline: Deadline | None) -> float:
        if deadline is None:
            return self.config.timeout_s
        if deadline.expired:
            raise DeadlineError(f"the time of this request was over before {self.config.shown_url} gave an answer")
        return min(self.config.timeout_s, deadline.remaining_s)

    def _send(self, body: dict[str, Any], deadline: Deadline | None) -> dict[str, Any]:
        timeout_s = self._time_left_s(deadline)
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        create: Any = self._client.chat.completions.with_streaming_response.create
        with self.meter.call() as call:
            try:
                with create(**body, timeout=timeout) as response:
                    completion = self._reply(response, call)
                call.answered(completion.get("usage"))
                return completion
            except TooLongError:
                call.result = "invalid_reply"
                raise ReasonerError(
                    f"{self.config.shown_url} sends more than {MAX_REPLY_BYTES} bytes: no answer is so long"
                ) from None
            except openai.APIStatusError as error:
                call.free(_result(error.status_code))
                raise self._status_failure(error) from None
            except (openai.APITimeoutError, httpx2.TimeoutException) as error:
                call.result = "timeout"
                if isinstance(error.__cause__, httpx2.ConnectTimeout):
                    call.free("unreachable")
            except (openai.APIConnectionError, httpx2.HTTPError) as error:
                raise self._connection_failure(error, call) from None
        self._time_left_s(deadline)
        raise ReasonerError(
            f"{self.config.shown_url} gave no answer within {timeout_s:.3g} s: raise RSVP_REASONER_TIMEOUT_S"
        )

    def _reply(self, response: Any, call: Call) -> dict[str, Any]:
        call.result = "invalid_reply"
        reply = response.read()
        try:
            completion = json.loads(reply)
        except (ValueError, RecursionError):
            completion = None
        if isinstance(completion, dict):
            return completion
        seen = f"{len(reply)} bytes of {response.headers.get('content-type', 'no content type')}"
        raise ReasonerError(f"{self.config.shown_url} sends no JSON object but {seen}: check the base URL")

    def _connection_failure(self, error: Exception, call: Call) -> _PassingError:
        cause = error.__cause__ or error
        if isinstance(cause, httpx2.ConnectError):
            call.free("unreachable")
        else:
            call.result = "broken_off"
        return _PassingError(f"{self.config.shown_url} cannot be reached or broke off: {self._readable(str(cause))}")

    def _status_failure(self, error: openai.APIStatusError) -> Exception:
        """What an HTTP error status means: refused, passing, or final."""
        status, reason = error.status_code, self._readable(_reason(error))
        if status in _REFUSED_STATUS:
            return RefusedError(reason, too_large=status == 413)
        message = f"{self.config.shown_url} answers {status}: {reason}"
        if (status in _RETRIED_STATUS or status >= 500) and error.code != _SPENT:
            return _PassingError(message, retry_after_s(error.response.headers))
        return ReasonerError(f"{message}; {_ADVICE.get(status, 'check the reasoner in the settings')}")

    def _readable(self, text: str) -> str:
        """An endpoint's own words for a message: short, on one line, without the API key."""
        if self.config.api_key:
            text = text.replace(self.config.api_key, "***")
        return one_line(text)[:300]


def _result(status: int) -> Result:
    if status == 429:
        return "rate_limited"
    if status in _REFUSED_STATUS:
        return "refused"
    return "server_error" if status >= 500 else "rejected"


def _reason(error: openai.APIStatusError) -> str:
    """Servers other than OpenAI's also say it as ``detail``, as a bare text, or as a page."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return str(body or error.message)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a Retry-After header asks for, in seconds or as an HTTP date; None where there is none."""
    value = headers.get("retry-after", "")
    try:
        wait_s = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait_s) if wait_s == wait_s else None

"""`Patience`: a request to Label Studio is made again while it is away, for a bounded time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from rsvp_backend.errors import LabelStudioAwayError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import RefusedError

log = logging.getLogger(__name__)
Value = TypeVar("Value")

WAITS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
TRIES = 5
"""Of a request that fails while Label Studio answers others."""


class Patience:
    """Safe to share by threads. ``limit_s``: how long Label Studio may be away; ``stopped``: waits no longer then."""

    def __init__(self, client: LabelStudioClient, limit_s: float, stopped: Callable[[], bool]) -> None:
        self._client, self._limit_s, self._stopped = client, limit_s, stopped
        self._lock = threading.Lock()
        self.trouble = ""
        """What is being waited for at present."""
        self.outages = 0
        """Requests that failed though they may work later."""

    def __call__(self, request: Callable[[], Value]) -> Value:
        """What ``request`` gives. Raises `LabelStudioAwayError` after ``limit_s``, and what else it raises at once.

        A request that fails `TRIES` times though Label Studio answers others raises `RefusedError`.
        """
        began_s, failed = time.monotonic(), 0
        for attempt in range(10**9):
            try:
                value = request()
            except LabelStudioAwayError as error:
                failed += self._there()
                if failed >= TRIES:
                    raise RefusedError(f"{error} ({TRIES} times)", 500) from error
                self._wait(error, attempt, began_s)
            else:
                self._settled()
                return value
        raise AssertionError

    def until_there(self) -> None:
        """Wait until Label Studio answers. Raises as a call does."""
        self(self._client.whoami)

    def _there(self) -> bool:
        try:
            self._client.whoami()
        except LabelStudioAwayError:
            return False
        return True

    def _wait(self, error: LabelStudioAwayError, attempt: int, began_s: float) -> None:
        wait_s = WAITS_S[min(attempt, len(WAITS_S) - 1)]
        left_s = self._limit_s - (time.monotonic() - began_s)
        if left_s <= 0 or self._stopped():
            raise error
        with self._lock:
            self.outages += 1
            if not self.trouble:
                log.warning("Label Studio is waited for, at most %.0f s: %s", left_s, error)
            self.trouble = str(error)
        until_s = time.monotonic() + min(wait_s, left_s)
        while time.monotonic() < until_s and not self._stopped():
            time.sleep(min(0.1, max(0.0, until_s - time.monotonic())))

    def _settled(self) -> None:
        if self.trouble:
            with self._lock:
                if self.trouble:
                    log.warning("Label Studio answers again")
                self.trouble = ""

"""Turns on the models: so many at a time, whoever is most urgent next, first come first served among equals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from rsvp_backend.errors import DeadlineError
from rsvp_backend.types import Deadline

_SMOOTHING = 0.1


class Urgency(IntEnum):
    """The lower, the sooner. A person waits for the first; nobody waits for the last."""

    INTERACTIVE = 0
    BATCH = 1
    BACKGROUND = 2


class Demand:
    """How urgent one computation is: as urgent as the most urgent of those who wait for it."""

    __slots__ = ("__weakref__", "urgency")

    def __init__(self, urgency: Urgency) -> None:
        self.urgency = urgency


class Turns:
    """``slots`` at a time; ``spare`` more for interactive ones, where the others mostly wait for a server's answer.

    Safe to share by threads.
    """

    def __init__(self, slots: int = 1, spare: int = 0) -> None:
        if slots < 1 or spare < 0:
            raise ValueError(f"{slots} slots and {spare} spare ones: at least 1 and 0 are expected")
        self.slots = slots
        self.spare = spare
        self.mean_s = 0.0
        """What a turn takes, on a moving average; 0 before the first."""
        self._running = 0
        self._waiting: list[Demand] = []
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        return self._running

    @contextmanager
    def turn(self, demand: Demand, deadline: Deadline | None = None) -> Iterator[None]:
        """Wait for a turn and hold it. Raises `DeadlineError` where none came in time."""
        self._take(demand, deadline)
        began_s = time.monotonic()
        try:
            yield
        finally:
            took_s = time.monotonic() - began_s
            with self._changed:
                self._running -= 1
                self.mean_s += (took_s - self.mean_s) * (_SMOOTHING if self.mean_s else 1.0)
                self._changed.notify_all()

    def hurry(self, demand: Demand, urgency: Urgency) -> None:
        """``demand`` is awaited by somebody with ``urgency`` as well."""
        with self._changed:
            if urgency < demand.urgency:
                demand.urgency = urgency
                self._changed.notify_all()

    def _take(self, demand: Demand, deadline: Deadline | None) -> None:
        with self._changed:
            self._waiting.append(demand)
            try:
                left_s = None if deadline is None else deadline.remaining_s
                if not self._changed.wait_for(lambda: self._is_next(demand), left_s):
                    raise DeadlineError("the time of this request was over before the models were free")
                self._running += 1
            finally:
                self._waiting.remove(demand)
                self._changed.notify_all()

    def _is_next(self, demand: Demand) -> bool:
        spare = self.spare if demand.urgency is Urgency.INTERACTIVE else 0
        return self._running < self.slots + spare and min(self._waiting, key=lambda one: one.urgency) is demand

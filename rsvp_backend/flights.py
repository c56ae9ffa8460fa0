"""Equal questions are answered once: those asked at the same time share one answer, later ones find it for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from rsvp_backend.errors import DeadlineError
from rsvp_backend.types import Deadline

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """``keep_s`` is short, because the image behind an address can change."""

    max_bytes: int = 64 * 2**20
    keep_s: float = 300.0


class Flights(Generic[Value]):
    """``size_bytes``: what keeping a value costs, or None for a value that must not be kept."""

    def __init__(self, size_bytes: Callable[[Value], int | None], limits: CacheLimits | None = None) -> None:
        self._size_bytes = size_bytes
        self._limits = limits or CacheLimits()
        self._lock = threading.Lock()
        self._flying: dict[Hashable, Future[Value]] = {}
        self._kept: OrderedDict[Hashable, tuple[Value, int, float]] = OrderedDict()
        self._kept_bytes = 0
        self._counts = {"computed": 0, "shared": 0, "kept": 0}

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    def counts(self) -> dict[str, int]:
        """How `get` came by its values so far: computed, shared with an equal one under way, kept."""
        with self._lock:
            return dict(self._counts)

    def get(self, key: Hashable, compute: Callable[[], Value], deadline: Deadline | None) -> Value:
        """The value of ``key``: kept, awaited from another thread, or computed here.

        Raises what ``compute`` raises (in every thread that waits for it), and `DeadlineError`.
        """
        with self._lock:
            kept = self._find(key)
            if kept is not None:
                self._counts["kept"] += 1
                return kept[0]
            flying = self._flying.get(key)
            self._counts["computed" if flying is None else "shared"] += 1
            if flying is None:
                own = self._flying[key] = Future()
        if flying is None:
            return self._compute(key, compute, own)
        try:
            return flying.result(None if deadline is None else deadline.remaining_s)
        except TimeoutError:
            if flying.done():
                raise
            raise DeadlineError(
                "the time of this request was over while the same task was computed for another"
            ) from None

    def peek(self, key: Hashable) -> Value | None:
        """The kept value of ``key``, if there is one; nothing is computed or awaited."""
        with self._lock:
            kept = self._find(key)
        return kept[0] if kept is not None else None

    def _compute(self, key: Hashable, compute: Callable[[], Value], own: Future[Value]) -> Value:
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._flying[key]
            own.set_exception(error)
            raise
        with self._lock:
            self._keep(key, value)
            del self._flying[key]
        own.set_result(value)
        return value

    def _find(self, key: Hashable) -> tuple[Value] | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        if time.monotonic() > entry[2]:
            self._kept_bytes -= self._kept.pop(key)[1]
            return None
        self._kept.move_to_end(key)
        return (entry[0],)

    def _keep(self, key: Hashable, value: Value) -> None:
        size = self._size_bytes(value)
        if size is None or size > self._limits.max_bytes:
            return
        self._kept[key] = (value, size, time.monotonic() + self._limits.keep_s)
        self._kept_bytes += size
        while self._kept_bytes > self._limits.max_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]

"""One ``/predict`` while it is answered: its tasks' answers as they come, and the time it has."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from rsvp_backend.pipeline import RSVP
from rsvp_backend.serving.answering import Answered, Answerer, Asked
from rsvp_backend.serving.crew import Party
from rsvp_backend.types import Deadline, EmptyReason

POLL_S = 0.5
GRACE_S = 1.0
"""For what ends at the deadline to say why."""

Gone = Callable[[], Awaitable[bool]]
"""Whether whoever asked has hung up."""


class Request:
    """Made in the event loop that `wait` runs in; `_work` runs in threads. Answers are kept as JSON."""

    def __init__(self, answerer: Answerer, rsvp: RSVP, asked: Asked) -> None:
        self.asked = asked
        self.tasks = asked.batch.tasks
        # Each in a context of its own, in which the request's id is known.
        works = [partial(copy_context().run, self._work, index) for index in range(len(self.tasks))]
        self.party = Party(asked.urgency, works)
        self._answerer = answerer
        self._rsvp = rsvp
        self._items: list[bytes | None] = [None] * len(self.tasks)
        self._late: dict[int, Answered] = {}
        self._left = len(self.tasks)
        self._slowest_s = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._finished = asyncio.Event()

    async def wait(self, gone: Gone) -> bool:
        """Until all tasks have been dealt with, the deadline, or the caller's hanging up; whether it has hung up.

        Nothing is taken in after that: what comes later is only remembered for who asks again.
        """
        until = Deadline(self.asked.deadline.at_s + GRACE_S)
        while self._left and not until.expired:
            try:
                await asyncio.wait_for(self._finished.wait(), min(POLL_S, until.remaining_s))
            except TimeoutError:
                if await gone():
                    break
        with self._lock:
            self._closed = True
        return await gone()

    def open_tasks(self) -> list[int]:
        """Places of the tasks that have no answer."""
        return [index for index, item in enumerate(self._items) if item is None]

    def reply(self, detail: str) -> bytes:
        """The whole answer; what has none is empty, by ``detail``."""
        for index in self.open_tasks():
            late = self._late.get(index) or self._answerer.late(self.tasks[index], self.asked, detail)
            self._items[index] = self._json(late)
        return b'{"results":[' + b",".join(item for item in self._items if item is not None) + b"]}"

    def _work(self, index: int) -> None:
        """Answer one task. It is begun only while there is time for the slowest one so far."""
        if self._closed:
            return
        begun_s = self.asked.deadline.remaining_s
        if begun_s <= self._slowest_s:
            return self._deal(index, None)
        answered = self._answerer.answer(self._rsvp, self.tasks[index], self.asked)
        self._slowest_s = max(self._slowest_s, begun_s - self.asked.deadline.remaining_s)
        if answered.outcome.reason is EmptyReason.DEADLINE:
            self._late[index] = answered
            return self._deal(index, None)
        self._deal(index, self._json(answered))

    def _deal(self, index: int, item: bytes | None) -> None:
        with self._lock:
            if self._closed:
                return
            self._items[index] = item
            self._left -= 1
            if not self._left:
                self._loop.call_soon_threadsafe(self._finished.set)

    def _json(self, answered: Answered) -> bytes:
        """Made where it was computed: a mask's RLE has up to millions of numbers."""
        item: Mapping[str, Any] = answered.item(self.asked, self._rsvp.version)
        return json.dumps(item, separators=(",", ":")).encode()

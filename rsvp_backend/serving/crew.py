"""The threads that work on tasks: a task at a time from each request in turn, urgent requests first.

A request's tasks are prepared (their images fetched) a little ahead of the models, so that neither waits for the other,
and a request whose images do not come holds up only itself.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from rsvp_backend.serving.turns import Urgency

log = logging.getLogger(__name__)

Work = Callable[[], None]
MORE_REQUESTS = 7
"""Requests, besides those that are computed, whose images are fetched meanwhile."""
INTERACTIVE_ONLY = 2
"""Threads that no batch can fill."""


class Party:
    """The tasks of one request that are still to be begun."""

    def __init__(self, urgency: Urgency, work: Sequence[Work]) -> None:
        self.urgency = urgency
        self.todo = deque(work)
        self.under_way = 0


class Crew:
    """``slots``: tasks computed at a time; of one request, one more is prepared. Safe to share by threads."""

    def __init__(self, slots: int = 1) -> None:
        self._ahead = slots + 1
        self._workers = slots + MORE_REQUESTS
        self._parties: dict[Urgency, deque[Party]] = {urgency: deque() for urgency in Urgency}
        self._changed = threading.Condition()
        self._closed = False
        self._started = False

    def start(self) -> None:
        """Make the threads; later calls do nothing."""
        with self._changed:
            if self._started:
                return
            self._started = True
        for number in range(self._workers + INTERACTIVE_ONLY):
            only = Urgency.BACKGROUND if number < self._workers else Urgency.INTERACTIVE
            threading.Thread(target=self._run, args=(only,), name=f"tasks-{number}", daemon=True).start()

    def close(self) -> None:
        """Begin nothing any more; what is under way ends by itself."""
        with self._changed:
            self._closed = True
            for parties in self._parties.values():
                parties.clear()
            self._changed.notify_all()

    def add(self, party: Party) -> None:
        with self._changed:
            self._parties[party.urgency].append(party)
            self._changed.notify_all()

    def withdraw(self, party: Party) -> None:
        """Begin none of its tasks any more."""
        with self._changed:
            party.todo.clear()
            if party in self._parties[party.urgency]:
                self._parties[party.urgency].remove(party)

    def waiting(self) -> dict[Urgency, int]:
        """Tasks that are not begun, by class."""
        with self._changed:
            return {urgency: sum(len(party.todo) for party in parties) for urgency, parties in self._parties.items()}

    def _run(self, least: Urgency) -> None:
        while True:
            with self._changed:
                found = self._next(least)
                while found is None:
                    if self._closed:
                        return
                    self._changed.wait()
                    found = self._next(least)
            party, work = found
            try:
                work()
            except Exception:
                log.exception("a task ended in a fault of this program")
            with self._changed:
                party.under_way -= 1
                self._changed.notify_all()
            del found, party, work  # holds no image while it waits

    def _next(self, least: Urgency) -> tuple[Party, Work] | None:
        """The next task of class ``least`` or more urgent; its request goes to the end of its row."""
        for urgency in Urgency:
            parties = self._parties[urgency]
            if urgency > least or (urgency is Urgency.BACKGROUND and self._awaited()):
                break
            for _ in range(len(parties)):
                party = parties[0]
                parties.rotate(-1)
                if party.todo and party.under_way < self._ahead:
                    party.under_way += 1
                    return party, party.todo.popleft()
                if not party.todo and not party.under_way:
                    parties.pop()
        return None

    def _awaited(self) -> bool:
        """Whether anything is there that somebody waits for: all else comes after it, its images as well."""
        return any(parties for urgency, parties in self._parties.items() if urgency < Urgency.BACKGROUND)

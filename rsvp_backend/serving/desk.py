"""`Desk`: takes ``/predict`` requests, as many as there is room for, and answers each by its deadline."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from rsvp_backend.engine import Engine, State
from rsvp_backend.errors import RsvpError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.serving.answering import Asked, Batch
from rsvp_backend.serving.backlog import Backlog, BacklogError
from rsvp_backend.serving.crew import Crew
from rsvp_backend.serving.request import Gone, Request
from rsvp_backend.serving.turns import Urgency
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)

SAVED_S = 40.0
"""Until Label Studio has most likely saved what it was answered; what it saves later is found double and deleted."""
LONGEST_RETRY_S = 60


class BusyError(RsvpError):
    """So many requests wait already that no further one is taken. ``after_s``: when to ask again."""

    def __init__(self, message: str, after_s: int) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Later:
    """Where tasks go that a request leaves open; without a ``backlog``, ``lacking`` says what to set."""

    backlog: Backlog | None
    lacking: str = ""


class Desk:
    """``limit``: requests inside at a time, and as many interactive ones. `answer` belongs to one event loop."""

    def __init__(self, engine: Engine, crew: Crew, later: Later, limit: int) -> None:
        self.refused = 0
        """Requests sent away for want of room."""
        self._engine = engine
        self._crew = crew
        self._later = later
        self._limit = limit
        self._inside: Counter[Urgency] = Counter()
        self._asked: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()

    def inside(self) -> dict[Urgency, int]:
        """Requests taken and not answered yet, by class."""
        return {urgency: self._inside[urgency] for urgency in (Urgency.INTERACTIVE, Urgency.BATCH)}

    def is_asked(self, key: tuple[int, int]) -> bool:
        """Whether a batch now inside has this (project, task)."""
        with self._lock:
            return self._asked[key] > 0

    async def answer(self, batch: Batch, deadline: Deadline, gone: Gone) -> bytes:
        """The reply's JSON. Raises `BusyError` and `NotReadyError`.

        What has no answer by the deadline gets an empty one, and goes to the backlog where it is one of a batch.
        """
        with self._admitted(Urgency.BATCH if batch.context is None else Urgency.INTERACTIVE), self._known(batch):
            asked = await run_in_threadpool(Asked.of, batch, deadline)
            request = Request(self._engine.answerer, await self._ready(deadline), asked)
            self._crew.start()
            self._crew.add(request.party)
            try:
                cut = await request.wait(gone)
            except asyncio.CancelledError:
                if batch.context is None:
                    log.warning("the server stops in the middle of a /predict%s", self._hand_over(batch, set(), True))
                raise
            finally:
                self._crew.withdraw(request.party)
            return await run_in_threadpool(self._reply, request, cut)

    @contextmanager
    def _admitted(self, urgency: Urgency) -> Iterator[None]:
        if self._inside[urgency] >= self._limit:
            self.refused += 1
            turns = self._engine.turns
            estimate_s = math.ceil(sum(self._crew.waiting().values()) * turns.mean_s / turns.slots)
            raise BusyError(
                f"{self._limit} requests are being answered already (RSVP_MAX_REQUESTS): ask again later",
                min(max(1, estimate_s), LONGEST_RETRY_S),
            )
        self._inside[urgency] += 1
        try:
            yield
        finally:
            self._inside[urgency] -= 1

    @contextmanager
    def _known(self, batch: Batch) -> Iterator[None]:
        """Tasks of a batch are left to it by the backlog meanwhile."""
        project = project_id(batch)
        kept = self._later.backlog is not None and batch.context is None and project is not None
        keys = Counter((project or 0, task) for task in _ids(batch) if task is not None) if kept else Counter()
        with self._lock:
            self._asked.update(keys)
        try:
            yield
        finally:
            with self._lock:
                self._asked -= keys

    async def _ready(self, deadline: Deadline) -> RSVP:
        self._engine.start()
        while self._engine.state is State.LOADING and not deadline.expired:
            await asyncio.sleep(0.02)
        return self._engine.ready()

    def _reply(self, request: Request, cut: bool) -> bytes:
        """In a thread: thousands of tasks may be open."""
        batch, left = request.asked.batch, set(request.open_tasks())
        detail = f"no time left in this request: {len(batch.tasks) - len(left)} of {len(batch.tasks)} tasks answered"
        if batch.context is None:
            detail += self._hand_over(batch, left, cut)
        if left or cut:
            log.warning("/predict, project %s: %s", batch.project, "connection cut; " + detail if cut else detail)
        return request.reply(detail)

    def _hand_over(self, batch: Batch, left: set[int], cut: bool) -> str:
        """What has no answer, or did not receive it, is answered later. Says what comes of it."""
        backlog, project = self._later.backlog, project_id(batch)
        if backlog is None:
            return f"; {self._later.lacking}"
        if project is None:
            return "; not answered later, as the request names no project"
        ids = _ids(batch)
        wanted = {task for index, task in enumerate(ids) if task is not None and (cut or index in left)}
        given = {task for task in ids if task is not None} - wanted
        try:
            taken = (
                backlog.add(project, sorted(wanted), batch.label_config, batch.default_instruction) if wanted else []
            )
            backlog.answered(project, given, SAVED_S)
        except BacklogError as error:
            log.error("%d tasks of project %d are not answered later: %s", len(wanted), project, error)
            return f"; not answered later: {error}"
        full = "" if len(taken) == len(wanted) else "; there is no room for more (RSVP_BACKLOG_TASKS), ask again"
        return f"; {len(taken)} will be answered later, see /backlog{full}" if wanted else ""


def project_id(batch: Batch) -> int | None:
    """Label Studio sends ``<id>.<time of creation>``."""
    number = batch.project.partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def _ids(batch: Batch) -> list[int | None]:
    """The tasks' ids, each None where it is no id."""
    return [_id(task.get("id")) for task in batch.tasks]


def _id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None

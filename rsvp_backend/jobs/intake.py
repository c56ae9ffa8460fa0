"""Webhook events -> jobs, within the time that Label Studio waits for an answer.

All writing is done by one thread of its own: a disk that hangs holds up neither the answer nor anything else here. An
event that is lost costs a count: Label Studio keeps the corrections, and every lesson reads all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import BoundedSemaphore
from typing import Any

from rsvp_backend.jobs.job import Job, JobError, missing
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)

ANSWER_S = 0.1
MAX_WAITING = 256
"""Events that wait for the disk; further ones are refused."""
START = "START_TRAINING"
_COUNTED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
LARGEST_ID = 2**31 - 1
_SLOW = "the queue of jobs is slow: the event may still be taken, see /jobs"
JSON = dict[str, Any]


class Intake:
    """Takes the events of `Settings`' Label Studio. `answer` raises nothing; it gives what the caller is told."""

    def __init__(self, settings: Settings) -> None:
        self.lacking = missing(settings)
        self.jobs = Jobs.of(settings) if self.lacking is None else None
        self._every, self._debounce_s = settings.train_every, settings.train_debounce_s
        self._writer = ThreadPoolExecutor(1, "jobs")
        self._places = BoundedSemaphore(MAX_WAITING)

    async def answer(self, event: Mapping[str, Any]) -> tuple[int, JSON]:
        """(HTTP status, what the caller is told): ``detail``, and the ``job`` where there is one."""
        action, project = str(event.get("action")), project_of(event)
        if action not in (START, *_COUNTED):
            return 200, {"detail": "noted"}
        if self.jobs is None:
            return 200, {"detail": self.lacking}
        if project is None:
            return 200, {"detail": "the event names no project"}
        if action == START:
            return await self.start(project, START)
        corrections = submitted(event)
        if not self._every or not corrections:
            reason = "not a correction" if self._every else "RSVP_TRAIN_EVERY is 0: jobs are started by hand"
            return 200, {"detail": f"noted; {reason}"}
        return await self._within(partial(_count, self.jobs, project, corrections, self._every, self._debounce_s))

    async def start(self, project: int, why: str) -> tuple[int, JSON]:
        """A job at once, answered as in `answer`."""
        if self.jobs is None:
            return 409, {"detail": self.lacking}
        return await self._within(partial(_start, self.jobs, project, why))

    def close(self) -> None:
        self._writer.shutdown(wait=False, cancel_futures=True)

    async def _within(self, act: Callable[[], JSON]) -> tuple[int, JSON]:
        if not self._places.acquire(blocking=False):
            return 503, {"detail": f"{MAX_WAITING} events wait for the queue of jobs already: this one is not taken"}
        writing = self._writer.submit(copy_context().run, _answered, act)  # logged with the request's id
        writing.add_done_callback(lambda _: self._places.release())
        done, _ = await asyncio.wait([asyncio.wrap_future(writing)], timeout=ANSWER_S)
        if not done:
            log.warning(_SLOW)
            return 202, {"detail": _SLOW}
        return writing.result()


def project_of(event: Mapping[str, Any]) -> int | None:
    """The id of the event's project."""
    project = event.get("project")
    found = project.get("id") if isinstance(project, Mapping) else None
    return found if is_id(found) else None


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_ID


def submitted(event: Mapping[str, Any]) -> int:
    """Annotations that the event tells of; skipped tasks are none. In bulk they are a list."""
    found = event.get("annotation")
    listed = found if isinstance(found, list) else [found]
    return sum(isinstance(one, Mapping) and not one.get("was_cancelled") for one in listed)


def _answered(act: Callable[[], JSON]) -> tuple[int, JSON]:
    try:
        return 200, act()
    except JobError as error:
        log.error("no job is queued: %s", error)
        return 503, {"detail": f"no job is queued: {error}"}


def _start(jobs: Jobs, project: int, why: str) -> JSON:
    job, new = jobs.start(project, why)
    return _about(jobs, job, f"job {job.id} is queued{'' if new else ' already, and will see this'}: see /jobs")


def _count(jobs: Jobs, project: int, corrections: int, every: int, debounce_s: float) -> JSON:
    job = jobs.count(project, corrections, every, debounce_s)
    if job is None:
        return {"detail": f"counted; {every} corrections make a job"}
    return _about(jobs, job, f"job {job.id} is queued, {every} corrections have come: see /jobs")


def _about(jobs: Jobs, job: Job, detail: str) -> JSON:
    idle = "" if jobs.worker_runs() else ". No worker runs: start `rsvp-backend worker`"
    return {"detail": detail + idle, "job": job.id}

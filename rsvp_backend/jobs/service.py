"""`Jobs`: what the server and the worker do with the records and the queue together.

A job is written down and sent within one transaction: whoever looks for a job that was sent waits for its record, and a
job that could not be sent leaves none. A message too many does no harm: only a queued job is begun.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from rsvp_backend.jobs.job import Job, JobError, State, jobs_folder
from rsvp_backend.jobs.queue import JobQueue
from rsvp_backend.jobs.store import Changes, JobStore
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)

WORKER_LOCK = "worker.lock"
MAX_QUEUED = 100
"""Queued jobs beyond which annotations, whose senders nobody knows, make no further one."""
MAX_RESUMED = 10
"""Deaths of the worker after which a job is given up."""
_MERGED = "merged with job {}, which goes on from its checkpoint"
_GIVEN_UP = "the worker died {} times while it ran this job: look for what ends it (memory?), then start it anew"


class Jobs:
    """Jobs in ``folder``. Every method raises `JobError` where the records or the queue cannot be used."""

    def __init__(self, folder: Path, redis: str | None = None, run: Callable[[int], None] = lambda _: None) -> None:
        self.folder = folder
        self.store = JobStore(folder, network=redis is not None)
        self._redis = redis
        self._run = run

    @classmethod
    def of(cls, settings: Settings, run: Callable[[int], None] = lambda _: None) -> Jobs:
        """Raises `JobError` where a setting is missing."""
        redis = settings.queue.get_secret_value() if settings.queue is not None else None
        return cls(jobs_folder(settings), redis, run)

    @cached_property
    def queue(self) -> JobQueue:
        name = "rsvp" if self._redis is None else self.store.name()
        return JobQueue(self.folder, name, self._redis, self._run)

    # --- what the server does ----------------------------------------------------------------------------------------

    def start(self, project: int, why: str) -> tuple[Job, bool]:
        """A job that begins as soon as the worker is free, and whether it is a new one: one that waits already is
        taken. While one runs, one more waits for its end."""
        queue = self.queue
        with self.store.changing() as changes:
            return self._ask(changes, queue, project, why, 0.0)

    def count(self, project: int, corrections: int, every: int, debounce_s: float) -> Job | None:
        """Count submitted corrections; ``every`` so many make a job, which begins ``debounce_s`` later and has all
        that come until then. None: not yet."""
        queue = self.queue
        with self.store.changing() as changes:
            count = changes.count(project, corrections)
            if count < every:
                return None
            changes.count_anew(project)
            if len(changes.with_state(State.QUEUED)) >= MAX_QUEUED:
                raise JobError(f"{MAX_QUEUED} jobs wait already: this one is not queued")
            return self._ask(changes, queue, project, f"{count} corrections", debounce_s)[0]

    def cancel(self, job_id: int) -> Job | None:
        """A queued job is cancelled, a running one asked to end; others stay as they are. None: unknown."""
        with self.store.changing() as changes:
            job = changes.one(job_id)
            if job is not None and job.state is State.QUEUED:
                changes.end(job_id, State.CANCELLED)
            elif job is not None and job.state is State.RUNNING:
                changes.update(job_id, cancelling=True)
            return changes.one(job_id)

    def worker_runs(self) -> bool:
        """Whether a worker holds the folder's lock."""
        try:
            with (self.folder / WORKER_LOCK).open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise JobError(f"{self.folder / WORKER_LOCK} cannot be read: {error.strerror}") from error
        return False

    def _ask(self, changes: Changes, queue: JobQueue, project: int, why: str, wait_s: float) -> tuple[Job, bool]:
        due = time.time() + wait_s
        waiting = next(iter(changes.with_state(State.QUEUED, project)), None)
        if waiting is None:
            job = changes.add(project, why, due)
            queue.send(job.id, due)
            log.info("job %d of project %d is queued: %s", job.id, project, why)
            return job, True
        if due < waiting.due:
            changes.update(waiting.id, due=due, why=why)
        if due < waiting.due or not changes.with_state(State.RUNNING):
            queue.send(waiting.id, min(due, waiting.due))  # also where its message was lost
        return changes.one(waiting.id) or waiting, False

    # --- what the worker does ----------------------------------------------------------------------------------------

    def recover(self) -> None:
        """At the worker's start: what ran when the last one died is queued again, and the queue is filled anew."""
        queue = self.queue
        with self.store.changing() as changes:
            for job in changes.with_state(State.RUNNING):
                if job.resumed >= MAX_RESUMED:
                    changes.end(job.id, State.FAILED, error=_GIVEN_UP.format(job.resumed + 1))
                    continue
                changes.update(job.id, resumed=job.resumed + 1)
                self._put_back(changes, job)
            queue.clear()
            for job in changes.with_state(State.QUEUED):
                queue.send(job.id, job.due)

    def claim(self, job_id: int) -> Job | None:
        """Begin a queued job; None: it is not to be run (any more)."""
        with self.store.changing() as changes:
            job = changes.one(job_id)
            if job is None or job.state is not State.QUEUED:
                return None
            changes.update(job_id, state=State.RUNNING, started=job.started or time.time())
            return changes.one(job_id)

    def put_back(self, job_id: int) -> None:
        """Queue a running job again; the worker's next start takes it up."""
        with self.store.changing() as changes:
            job = changes.one(job_id)
            if job is not None and job.state is State.RUNNING:
                self._put_back(changes, job)

    def _put_back(self, changes: Changes, job: Job) -> None:
        """What waits behind it is not needed then: it reads the corrections anew. One to be cancelled is."""
        if job.cancelling:
            changes.end(job.id, State.CANCELLED)
            return
        for waiting in changes.with_state(State.QUEUED, job.project):
            changes.end(waiting.id, State.CANCELLED, text=_MERGED.format(job.id))
        changes.update(job.id, state=State.QUEUED, due=time.time())
        log.info("job %d of project %d is queued again: it goes on from its checkpoint", job.id, job.project)

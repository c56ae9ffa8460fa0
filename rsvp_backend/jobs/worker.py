"""``rsvp-backend worker``: the process that runs jobs, one at a time, until SIGTERM or SIGINT.

A stop reaches the lesson at its next step and leaves the job queued; a second signal ends the process at once. Whatever
way it ends, its next start goes on where the job was.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from rsvp_backend.errors import LabelStudioAwayError, RsvpError
from rsvp_backend.jobs.job import Job, JobError, State, one_line
from rsvp_backend.jobs.running import Learn, Running, StoppedError, Taught, Tell, finite
from rsvp_backend.jobs.service import WORKER_LOCK, Jobs
from rsvp_backend.lessons import CancelledError, Told
from rsvp_backend.settings import Settings
from rsvp_backend.training import durable

if TYPE_CHECKING:
    from huey.consumer import Consumer

log = logging.getLogger(__name__)

RETRY_S = 2.0
AWAY_S = (5.0, 15.0, 60.0, 300.0, 900.0)
"""Waits while Label Studio cannot be reached; then the job fails."""
_LOCK_WAIT_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
T = TypeVar("T")


def learn(settings: Settings, project: int, tell: Tell) -> Taught:
    """The lesson of `learning`, whose libraries are heavy to import."""
    from rsvp_backend import learning

    return learning.learn(settings, project, tell)


def run_worker(settings: Settings, lesson: Learn = learn) -> None:
    """Run jobs until a signal. Raises `JobError` without the settings, or where another worker runs already."""
    worker = Worker(settings, lesson)
    with ExitStack() as stack:
        folder = worker.jobs.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(durable.locked(folder / WORKER_LOCK, _LOCK_WAIT_S))
        except TimeoutError:
            raise JobError(f"a worker runs already on {folder}: one is enough, jobs run one at a time") from None
        except OSError as error:
            raise JobError(f"{folder} (beside RSVP_VERSIONS) cannot be written: {error.strerror or error}") from error
        worker.run()


class Worker:
    """Takes jobs from the queue and runs ``lesson`` on their projects."""

    def __init__(self, settings: Settings, lesson: Learn) -> None:
        self.jobs = Jobs.of(settings, self.run_job)
        self._settings = settings
        self._lesson = lesson
        self._stop = Event()

    def run(self) -> None:
        """In the main thread, as signals are handled there."""
        self.jobs.recover()
        logging.getLogger("huey").setLevel(logging.ERROR)
        consumer = self.jobs.queue.consumer()
        self._stop = consumer.stop_flag
        log.info("the worker waits for jobs in %s", self.jobs.folder)
        consumer.run()
        self._end(consumer)

    def run_job(self, job_id: int) -> None:
        """Run one job to its end, whatever that is; only one that is queued is run."""
        job = self._insist(lambda: self.jobs.claim(job_id))
        if job is None:
            return
        earlier = self._insist(lambda: self.jobs.store.log(job_id))
        curve = self._insist(lambda: self.jobs.store.curve(job_id))
        running = Running(job, self.jobs.store, self._stop.is_set, earlier or [], curve or ())
        with running.listening():
            log.info("job %d, project %d: begins", job.id, job.project)
            state, values = self._teach(job, running)
            log.info("job %d, project %d: %s", job.id, job.project, values.get("error") or state)
        self._insist(lambda: self._settle(job, running, state, values))

    def _teach(self, job: Job, running: Running) -> tuple[State, dict[str, Any]]:
        try:
            lesson = self._patiently(job, running)
        except StoppedError:
            return State.QUEUED, {}
        except CancelledError:
            return State.CANCELLED, {}
        except RsvpError as error:
            return State.FAILED, {"error": one_line(str(error))}
        except Exception as error:
            log.exception("job %d failed by a fault of this program", job.id)
            return State.FAILED, {"error": one_line(f"{type(error).__name__}: {error}")}
        return State.DONE, {"result": finite(lesson.to_dict())}

    def _patiently(self, job: Job, running: Running) -> Taught:
        """The lesson, begun again after each time that Label Studio was away: what it has done so far is not lost."""
        for wait_s in AWAY_S:
            try:
                return self._lesson(self._settings, job.project, running.tell)
            except LabelStudioAwayError as error:
                log.warning("job %d waits %.0f s: %s", job.id, wait_s, error)
                self._wait(wait_s, str(error), running)
        return self._lesson(self._settings, job.project, running.tell)

    def _wait(self, wait_s: float, why: str, running: Running) -> None:
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            running.tell(Told("waiting", f"for Label Studio: {why}"))
            self._stop.wait(min(1.0, left_s))

    def _settle(self, job: Job, running: Running, state: State, values: dict[str, Any]) -> None:
        if state is State.QUEUED:
            self.jobs.put_back(job.id)
        with self.jobs.store.changing() as changes:
            changes.keep_log(job.id, running.lines)
            if state is not State.QUEUED:
                changes.end(job.id, state, **values)

    def _insist(self, act: Callable[[], T]) -> T | None:
        """Try again while the records cannot be used (a full disk), until a stop; None then: the next start recovers
        what is left."""
        while True:
            try:
                return act()
            except JobError as error:
                log.error("tried again in %.0f s: %s", RETRY_S, error)
                if self._stop.wait(RETRY_S):
                    return None

    def _end(self, consumer: Consumer) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        log.info("the worker stops at the running job's next step; a second signal ends it at once")
        for _, thread in consumer.worker_threads:
            thread.join()

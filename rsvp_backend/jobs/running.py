"""A job that runs: what its lesson tells goes into the record and the log, and a wish to end it reaches the lesson."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rsvp_backend.jobs.job import Job, JobError, one_line
from rsvp_backend.jobs.store import Curve, JobStore
from rsvp_backend.lessons import CancelledError
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)

LOG_LINES = 200
CURVE_POINTS = 240
"""Past that every second one is dropped."""
RECORDED_EVERY_S = 0.5
LOGGED_EVERY_S = 15.0
_PACKAGE = "rsvp_backend"


class Told(Protocol):
    """What a lesson tells on its way, see `lessons.Told`."""

    @property
    def stage(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def measured(self) -> Mapping[str, float]: ...


class Taught(Protocol):
    """What comes of a lesson, see `learning.Lesson`."""

    def to_dict(self) -> dict[str, Any]: ...


Tell = Callable[[Told], None]
Learn = Callable[[Settings, int, Tell], Taught]
"""A lesson of a project; what ``Tell`` raises ends it."""


class StoppedError(Exception):
    """The worker is to stop: the job goes on another time."""


class Running:
    """Told by one lesson. Raises `StoppedError` and `CancelledError` out of `tell`."""

    def __init__(
        self, job: Job, store: JobStore, stopping: Callable[[], bool], log_lines: list[str], curve: Curve = ()
    ) -> None:
        self.job = job
        self._store = store
        self._stopping = stopping
        self._lines = deque(log_lines, LOG_LINES)
        self._curve = curve
        self._stage = ""
        self._recorded_s = self._logged_s = float("-inf")

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def tell(self, told: Told) -> None:
        if self._stopping():
            raise StoppedError
        now_s, new_stage = time.monotonic(), told.stage != self._stage
        self._stage = told.stage
        if new_stage or now_s >= self._logged_s + LOGGED_EVERY_S:
            self._logged_s = now_s
            steps = f" {told.done} of {told.total}" if told.total else ""
            log.info("job %d, project %d: %s%s: %s", self.job.id, self.job.project, told.stage, steps, told.text)
        if new_stage or now_s >= self._recorded_s + RECORDED_EVERY_S:
            self._recorded_s = now_s
            self._record(told)

    def _record(self, told: Told) -> None:
        """A record that cannot be written does not end the lesson."""
        try:
            with self._store.changing() as changes:
                text = one_line(told.text)
                changes.update(self.job.id, stage=told.stage, text=text, done=told.done, total=told.total)
                changes.keep_log(self.job.id, self.lines)
                if told.measured:
                    self._curve = with_point(self._curve, told)
                    changes.keep_curve(self.job.id, self._curve)
                job = changes.one(self.job.id)
        except JobError as error:
            log.warning("the progress of job %d is not recorded: %s", self.job.id, error)
            return
        if job is not None and job.cancelling:
            raise CancelledError

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, what the package logs belongs to the job: its messages, without tracebacks."""
        handler = _Handler(self._lines)
        for known in (one for main in logging.getLogger().handlers for one in main.filters):
            handler.addFilter(known)  # what is masked in the process's own log is masked here
        logging.getLogger(_PACKAGE).addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger(_PACKAGE).removeHandler(handler)


def with_point(curve: Curve, told: Told) -> Curve:
    """``curve`` with what was measured at this step; what a resumed job goes through again replaces what was there."""
    values = finite(dict(told.measured))
    kept = tuple(point for point in curve if point[0] < told.done)
    kept = kept[::2] if len(kept) >= CURVE_POINTS else kept
    return (*kept, (told.done, values.get("loss"), values.get("held_out")))


class _Handler(logging.Handler):
    def __init__(self, lines: deque[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        at = time.strftime("%H:%M:%S", time.gmtime(record.created))
        self._lines.append(f"{at} {record.levelname} {one_line(record.getMessage())}")


def finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value

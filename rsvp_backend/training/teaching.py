"""Answers of a larger reasoner, as examples for a smaller one; what it cannot answer is left out and counted."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ImageError, ReasonerError
from rsvp_backend.grid import visual_prompt
from rsvp_backend.training.examples import Example, Source, make_example
from rsvp_backend.types import Answer, Marks, Query, Reasoner

log = logging.getLogger(__name__)
GIVE_UP_AFTER = 5


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A question that the teacher is asked. ``picture`` names the image, see `make_example`."""

    task: int
    query: Query
    load_image: Callable[[], Image.Image]
    picture: str


class LeftOut(StrEnum):
    """Why an answer of the teacher is not learned from."""

    INVALID = "invalid"  # also after the repair try
    FAILED = "failed"  # not reached, too late, or over budget
    NO_REGIONS = "no regions"  # nothing is named, or said to be present and not where
    NO_LABEL = "no label"  # where the project has several to choose from
    NO_IMAGE = "no image"


@dataclass(slots=True)
class Taught:
    """``examples`` in the order of the tasks; the rest by reason, with the first error of each."""

    examples: list[Example] = field(default_factory=list)
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    details: dict[LeftOut, str] = field(default_factory=dict)

    def leave_out(self, reason: LeftOut, detail: str = "") -> None:
        self.left_out[reason] += 1
        if detail:
            self.details.setdefault(reason, detail)

    def __str__(self) -> str:
        lines = [f"{len(self.examples)} answers of the teacher"]
        for reason, count in self.left_out.most_common():
            detail = f": {self.details[reason]}" if reason in self.details else ""
            lines.append(f"left out {count}, {reason}{detail}")
        return "\n".join(lines)


def ask_teacher(
    teacher: Reasoner,
    tasks: Sequence[Task],
    marks: Marks,
    *,
    labels: bool = False,
    workers: int = 1,
    tell: Callable[[int], None] = lambda _: None,
) -> Taught:
    """Ask about all ``tasks``, ``workers`` at a time; ``tell`` hears how many were asked.

    ``labels``: whether an answer must name one of the query's labels. Raises `ReasonerError` where the teacher fails
    `GIVE_UP_AFTER` times in a row: it is down, or refuses. What a caching teacher has answered until then is not lost.
    """
    taught, asking, done = Taught(), _Asking(teacher, marks), 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for task, answer in zip(tasks, pool.map(asking, tasks), strict=True):
                _take(taught, task, answer, labels)
                done += 1
                tell(done)
        except BaseException:
            asking.stopped.set()
            raise
    return taught


class _Asking:
    """Asks about one task; an error that is not the caller's comes back as a value."""

    def __init__(self, teacher: Reasoner, marks: Marks) -> None:
        self._teacher, self._marks = teacher, marks
        self._look = partial(visual_prompt, marks=marks, canvas_px=teacher.canvas_px, max_side_px=teacher.max_side_px)
        self._lock, self._failures = threading.Lock(), 0
        self.stopped = threading.Event()

    def __call__(self, task: Task) -> Answer | Exception:
        if self.stopped.is_set():
            return ReasonerError("not asked any more")
        try:
            picture = self._look(task.load_image().convert("RGB"))
        except ImageError as error:
            return error
        try:
            answer = self._teacher.propose(picture, task.query, self._marks, None)
        except AnswerError as error:
            self._count(None)
            return error
        except (ReasonerError, DeadlineError) as error:
            self._count(error)
            return error
        self._count(None)
        return answer

    def _count(self, error: Exception | None) -> None:
        with self._lock:
            self._failures = 0 if error is None else self._failures + 1
            if self._failures >= GIVE_UP_AFTER:
                self.stopped.set()
                raise ReasonerError(f"the teacher failed {GIVE_UP_AFTER} times in a row, the last time: {error}")


def _take(taught: Taught, task: Task, answer: Answer | Exception, labels: bool) -> None:
    if isinstance(answer, AnswerError):
        taught.leave_out(LeftOut.INVALID, str(answer))
    elif isinstance(answer, ImageError):
        taught.leave_out(LeftOut.NO_IMAGE, str(answer))
    elif isinstance(answer, Exception):
        taught.leave_out(LeftOut.FAILED, str(answer))
    elif not answer.proposals or any(one.present and one.regions.empty for one in answer.proposals):
        taught.leave_out(LeftOut.NO_REGIONS)
    elif labels and any(one.label is None for one in answer.proposals):
        taught.leave_out(LeftOut.NO_LABEL)
    else:
        made = make_example(task.task, task.query, answer.proposals, task.load_image, Source.TEACHER, task.picture)
        taught.examples.append(made)

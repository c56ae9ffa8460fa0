"""One of Label Studio's tasks -> its answer. Whatever goes wrong with a task ends as its own outcome."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from cachetools import LRUCache
from PIL import Image

from rsvp_backend.answers import (
    FINAL_REASONS,
    Question,
    answer,
    fitting_label,
    read_task,
    settle_labels,
    shown_uri,
    summary,
    with_message,
)
from rsvp_backend.errors import DeadlineError, ImageError, InstructionError, LabelConfigError
from rsvp_backend.flights import CacheLimits, Flights
from rsvp_backend.labelstudio.hints import drawn_hints, read_hints
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.instructions import prompt_text
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.metrics import Metrics
from rsvp_backend.pipeline import RSVP
from rsvp_backend.refinement import refine
from rsvp_backend.serving.turns import Demand, Turns, Urgency
from rsvp_backend.timing import timed
from rsvp_backend.traces import TraceLog
from rsvp_backend.types import Deadline, EmptyReason, Outcome, Trace

log = logging.getLogger(__name__)

CLICKED_IMAGES = CacheLimits(max_bytes=128 * 2**20, keep_s=60.0)
"""Clicks on one image come seconds apart: it is not fetched again for each."""
PROMPT_CHARS = 2**20
"""Characters of the texts typed last that are remembered, all together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One ``/predict``. ``label_config`` is XML; ``context`` is that of an interactive call; ``default_instruction``
    serves tasks that have none."""

    tasks: Sequence[Mapping[str, Any]]
    label_config: str
    project: str = ""
    context: Mapping[str, Any] | None = None
    default_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the tasks of one request have in common. ``config`` is None where it cannot be used: ``problem`` says why.

    ``at_s``: when it came, on the monotonic clock.
    """

    batch: Batch
    config: LabelConfig | None
    problem: str
    urgency: Urgency
    deadline: Deadline
    at_s: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, batch: Batch, deadline: Deadline, urgency: Urgency | None = None) -> Asked:
        """``urgency`` by default: that of a person who waits, where the batch has a context."""
        if urgency is None:
            urgency = Urgency.BATCH if batch.context is None else Urgency.INTERACTIVE
        try:
            return cls(batch, parse_label_config(batch.label_config), "", urgency, deadline)
        except LabelConfigError as error:
            return cls(batch, None, str(error), urgency, deadline)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """An outcome without its picture, the id of its trace, and where people see that (None: nobody knows)."""

    outcome: Outcome
    trace_id: str
    trace_url: str | None = None

    @property
    def final(self) -> bool:
        """The same task would get the same answer again."""
        return self.outcome.reason in FINAL_REASONS

    def item(self, asked: Asked, version: str) -> dict[str, Any]:
        """As ``/predict`` answers (see `answers.answer`)."""
        item = answer(self.outcome, asked.config, version, self.trace_id, self.trace_url)
        return item if asked.batch.context is None else with_message(item, self.outcome, asked.config)


class Answerer:
    """Safe to share by threads. Images are fetched outside of ``turns``, models run inside of them."""

    def __init__(
        self,
        fetcher: ImageFetcher,
        traces: TraceLog,
        metrics: Metrics,
        turns: Turns,
        instruction_field: str | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._traces = traces
        self._metrics = metrics
        self._turns = turns
        self._instruction_field = instruction_field
        self.answers: Flights[Answered] = Flights(_kept_bytes)
        self.images: Flights[Image.Image] = Flights(_image_bytes, CLICKED_IMAGES)
        self._prompts: LRUCache[tuple[str, int | None], str] = LRUCache(PROMPT_CHARS, getsizeof=_text_size)
        self._demands: WeakValueDictionary[Hashable, Demand] = WeakValueDictionary()
        self._lock = threading.Lock()

    def answer(self, rsvp: RSVP, task: Mapping[str, Any], asked: Asked) -> Answered:
        """The one broad catch: whatever goes wrong with this task ends as its own outcome."""
        try:
            return self._answer(rsvp, task, asked)
        except InstructionError as error:
            return self._refused(EmptyReason.NO_INSTRUCTION, str(error), task, asked)
        except ImageError as error:
            return self._refused(EmptyReason.IMAGE, str(error), task, asked)
        except LabelConfigError as error:
            return self._refused(EmptyReason.LABEL_CONFIG, str(error), task, asked)
        except DeadlineError as error:
            return self._refused(EmptyReason.DEADLINE, str(error), task, asked)
        except Exception as error:
            log.exception("task %s failed", task.get("id"))
            return self._refused(EmptyReason.INTERNAL, f"{type(error).__name__}: {error}", task, asked)

    def late(self, task: Mapping[str, Any], asked: Asked, detail: str) -> Answered:
        """For a task that was not begun in time; only its trace in memory tells, as there may be thousands."""
        return self._empty(EmptyReason.DEADLINE, detail, task, asked, on_disk=False)

    def _answer(self, rsvp: RSVP, task: Mapping[str, Any], asked: Asked) -> Answered:
        if asked.config is None:
            raise LabelConfigError(asked.problem)
        batch = asked.batch
        question = read_task(task, asked.config, batch.context, self._instruction_field, batch.default_instruction)
        if drawn_hints(batch.context, asked.config):
            answered = self._refine(rsvp, question, asked)
        else:
            self._note_prompt(question, batch)
            answered = self._shared(rsvp, question, asked)
        level = logging.INFO if answered.final else logging.WARNING
        log.log(level, "task %s: %s (trace %s)", task.get("id"), summary(answered.outcome), answered.trace_id)
        return answered

    def _shared(self, rsvp: RSVP, question: Question, asked: Asked) -> Answered:
        """Computed once for all who ask the same. Who joined one that ran out of its own time goes on alone."""
        key, own = _key(question, rsvp), False
        demand = self._demand(key, asked.urgency)

        def compute() -> Answered:
            nonlocal own
            own = True
            return self._compute(rsvp, question, asked, demand)

        while True:
            try:
                answered = self.answers.get(key, compute, asked.deadline)
            except DeadlineError:
                if own or asked.deadline.expired:
                    raise
                continue
            late = answered.outcome.reason is EmptyReason.DEADLINE
            if not late or own or asked.deadline.expired:
                return answered

    def _demand(self, key: Hashable, urgency: Urgency) -> Demand:
        with self._lock:
            demand = self._demands.get(key)
            if demand is None:
                demand = self._demands[key] = Demand(urgency)
        self._turns.hurry(demand, urgency)
        return demand

    def _compute(self, rsvp: RSVP, question: Question, asked: Asked, demand: Demand) -> Answered:
        timings_s: dict[str, float] = {}
        with timed(timings_s, "fetch"):
            image = self._fetcher.fetch(question.uri, asked.deadline, question.task_id)
        with self._turns.turn(demand, asked.deadline):
            self._metrics.waited(asked.urgency.name.lower(), time.monotonic() - asked.at_s)
            outcome = rsvp(image, question.instruction, question.config.label_values, asked.deadline)
        return self._traced(outcome, image, timings_s, rsvp, question, asked.batch)

    def _refine(self, rsvp: RSVP, question: Question, asked: Asked) -> Answered:
        """The mask of the context's clicks and rectangle; the reasoner is never asked.

        Label Studio sends no prompt text with them: the text typed last on the task is what they correct.
        """
        timings_s: dict[str, float] = {}
        deadline, batch = asked.deadline, asked.batch
        with timed(timings_s, "fetch"):
            image = self.images.get(
                question.uri, lambda: self._fetcher.fetch(question.uri, deadline, question.task_id), deadline
            )
        hints = read_hints(batch.context, question.config, *image.size)
        question = replace(question, instruction=self._last_instruction(question, batch))
        kept = self.answers.peek(_key(question, rsvp))
        remembered = fitting_label(kept.outcome.instances if kept else (), hints.label, question.config)
        with self._turns.turn(Demand(asked.urgency), deadline):
            self._metrics.waited(asked.urgency.name.lower(), time.monotonic() - asked.at_s)
            outcome = refine(rsvp, image, hints, remembered, question.instruction)
        return self._traced(outcome, image, timings_s, rsvp, question, batch)

    def _note_prompt(self, question: Question, batch: Batch) -> None:
        if prompt_text(batch.context, question.config) and _text_size(question.instruction) <= PROMPT_CHARS:
            with self._lock:
                self._prompts[batch.project, question.task_id] = question.instruction

    def _last_instruction(self, question: Question, batch: Batch) -> str:
        if prompt_text(batch.context, question.config):
            return question.instruction
        with self._lock:
            return self._prompts.get((batch.project, question.task_id), question.instruction)

    def _traced(
        self,
        outcome: Outcome,
        image: Image.Image,
        timings_s: dict[str, float],
        rsvp: RSVP,
        question: Question,
        batch: Batch,
    ) -> Answered:
        """The outcome with its labels settled, its trace written and its picture let go."""
        outcome = settle_labels(outcome, question.config)
        outcome = replace(outcome, trace=replace(outcome.trace, timings_s=timings_s | dict(outcome.trace.timings_s)))
        self._metrics.observe(outcome)
        trace_id = self._traces.add(
            outcome,
            picture=image,
            task=question.task_id,
            project=batch.project,
            image=shown_uri(question.uri),
            size_px=image.size,
            labels=question.config.label_values,
            model_version=rsvp.version,
        )
        outcome = replace(outcome, trace=replace(outcome.trace, visual_prompt=None))
        return Answered(outcome, trace_id, self._traces.address(trace_id))

    def _refused(self, reason: EmptyReason, detail: str, task: Mapping[str, Any], asked: Asked) -> Answered:
        answered = self._empty(reason, detail, task, asked)
        log.warning("task %s: empty, %s: %s (trace %s)", task.get("id"), reason, detail, answered.trace_id)
        return answered

    def _empty(
        self, reason: EmptyReason, detail: str, task: Mapping[str, Any], asked: Asked, on_disk: bool = True
    ) -> Answered:
        outcome = Outcome.empty(reason, detail, Trace(instruction=""))
        self._metrics.observe(outcome)
        trace_id = self._traces.add(outcome, on_disk, task=task.get("id"), project=asked.batch.project)
        return Answered(outcome, trace_id)


def _key(question: Question, rsvp: RSVP) -> tuple[Hashable, ...]:
    return question.uri, question.instruction, question.config.labels, rsvp.version


def _text_size(text: str) -> int:
    return 100 + len(text)


def _image_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


def _kept_bytes(answered: Answered) -> int | None:
    """Only what the same question would get again is kept."""
    if not answered.final:
        return None
    return 1024 + sum(instance.mask.nbytes for instance in answered.outcome.instances)

"""The process's one engine: loads the models once, answers Label Studio's tasks, and lets no task spoil a batch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

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
from rsvp_backend.errors import DeadlineError, ImageError, InstructionError, LabelConfigError, RsvpError
from rsvp_backend.flights import CacheLimits, Flights
from rsvp_backend.labelstudio.hints import drawn_hints, read_hints
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.instructions import prompt_text
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.metrics import Metrics
from rsvp_backend.pipeline import RSVP
from rsvp_backend.refinement import refine
from rsvp_backend.timing import timed
from rsvp_backend.traces import TraceLog
from rsvp_backend.types import Deadline, EmptyReason, Outcome, Trace

log = logging.getLogger(__name__)

MAX_PROMPTS = 1000
POLL_S = 2.0
CLICKED_IMAGES = CacheLimits(max_bytes=128 * 2**20, keep_s=60.0)
"""Clicks on one image come seconds apart: it is not fetched again for each."""


class NotReadyError(RsvpError):
    """The models are not loaded: not yet, or loading failed."""


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Batch:
    """One ``/predict``. ``label_config`` is XML; ``context`` is that of an interactive call; ``default_instruction``
    serves tasks that have none."""

    tasks: Sequence[Mapping[str, Any]]
    label_config: str
    project: str = ""
    context: Mapping[str, Any] | None = None
    default_instruction: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """An outcome without its picture, and the id of its trace."""

    outcome: Outcome
    trace_id: str


class Engine:
    """Safe to share by threads. ``build`` loads the models; it runs once, in a thread of its own, after `start`.

    ``update`` is asked every ``poll_s`` seconds in that thread whether there is something newer than what is served:
    requests that run by then end on what they began with.
    """

    def __init__(
        self,
        build: Callable[[], RSVP],
        fetcher: ImageFetcher,
        traces: TraceLog | None = None,
        instruction_field: str | None = None,
        update: Callable[[RSVP], RSVP | None] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._build = build
        self._update = update
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._fetcher = fetcher
        self._instruction_field = instruction_field
        self.traces = traces or TraceLog()
        self.metrics = Metrics()
        self._flights = Flights(_kept_bytes)
        self._images = Flights(_image_bytes, CLICKED_IMAGES)
        self._prompts: LRUCache[tuple[str, int | None], str] = LRUCache(MAX_PROMPTS)
        self._prompts_lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._rsvp: RSVP | None = None
        self._version: str | None = None
        self.failure = ""

    def start(self) -> None:
        """Begin to load in the background; later calls do nothing."""
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="load-models", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Follow no update any more; what is loaded goes on answering."""
        self._stopped.set()

    @property
    def state(self) -> State:
        if not self._settled.is_set():
            return State.LOADING
        return State.READY if self._rsvp is not None else State.FAILED

    @property
    def version(self) -> str | None:
        """``RSVP.version``, known as soon as the models are loaded."""
        return self._version

    def wait_ready(self, timeout_s: float) -> RSVP:
        """The models, loaded. Raises `NotReadyError` after ``timeout_s`` or where loading failed."""
        self.start()
        if not self._settled.wait(timeout_s):
            raise NotReadyError(f"the models are still loading after {timeout_s:.0f} s: ask again later")
        if self._rsvp is None:
            raise NotReadyError(f"the models could not be loaded: {self.failure}")
        return self._rsvp

    def predict(self, batch: Batch, deadline: Deadline) -> list[dict[str, Any]]:
        """One answer per task, in order (see `answers.answer`). Raises `NotReadyError`.

        A task is begun only while there is time for the slowest one so far: Label Studio drops a late reply as a whole.
        """
        rsvp = self.wait_ready(deadline.remaining_s)
        config, config_error = _parsed(batch.label_config)
        answers: list[dict[str, Any]] = []
        slowest_s = 0.0
        for task in batch.tasks:
            began_s = time.monotonic()
            if config is None:
                answered = self._refused(EmptyReason.LABEL_CONFIG, config_error, task, batch)
            elif deadline.remaining_s <= slowest_s:
                detail = f"no time left in this request: {len(answers)} of {len(batch.tasks)} tasks answered before"
                answered = self._refused(EmptyReason.DEADLINE, detail, task, batch)
            else:
                answered = self._answer(rsvp, task, config, batch, deadline)
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            item = answer(answered.outcome, config, rsvp.version, answered.trace_id)
            answers.append(item if batch.context is None else with_message(item, answered.outcome, config))
        return answers

    def _run(self) -> None:
        self._load()
        if self._rsvp is not None and self._update is not None:
            self._follow(self._rsvp, self._update)

    def _follow(self, rsvp: RSVP, update: Callable[[RSVP], RSVP | None]) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                fresh = update(rsvp)
            except Exception as error:  # of whatever kind: what is served stays, and the next update is waited for
                log.error("%s. Version %s is served on", error, self._version)
                continue
            if fresh is not None:
                rsvp = self._rsvp = fresh
                self._version = fresh.version
                log.info("version %s is served from now on", self._version)

    def _load(self) -> None:
        try:
            self._rsvp = self._build()
            self._version = self._rsvp.version
            self.metrics.watch(self._rsvp.reasoner)
        except Exception as error:  # whatever a model library raises must reach /health and /setup
            self._rsvp = None
            self.failure = str(error) if isinstance(error, RsvpError) else f"{type(error).__name__}: {error}"
            log.error("the models could not be loaded: %s", self.failure, exc_info=not isinstance(error, RsvpError))
        finally:
            self._settled.set()

    def _answer(
        self, rsvp: RSVP, task: Mapping[str, Any], config: LabelConfig, batch: Batch, deadline: Deadline
    ) -> _Answered:
        """The one broad catch: whatever goes wrong with this task ends as its own outcome."""
        try:
            question = read_task(task, config, batch.context, self._instruction_field, batch.default_instruction)
            if drawn_hints(batch.context, config):
                answered = self._refine(rsvp, question, batch, deadline)
            else:
                self._note_prompt(question, batch)
                key = _key(question, rsvp)
                answered = self._flights.get(key, lambda: self._compute(rsvp, question, batch, deadline), deadline)
            level = logging.INFO if answered.outcome.reason in FINAL_REASONS else logging.WARNING
            log.log(level, "task %s: %s (trace %s)", task.get("id"), summary(answered.outcome), answered.trace_id)
            return answered
        except InstructionError as error:
            return self._refused(EmptyReason.NO_INSTRUCTION, str(error), task, batch)
        except ImageError as error:
            return self._refused(EmptyReason.IMAGE, str(error), task, batch)
        except DeadlineError as error:
            return self._refused(EmptyReason.DEADLINE, str(error), task, batch)
        except Exception as error:
            log.exception("task %s failed", task.get("id"))
            return self._refused(EmptyReason.INTERNAL, f"{type(error).__name__}: {error}", task, batch)

    def _compute(self, rsvp: RSVP, question: Question, batch: Batch, deadline: Deadline) -> _Answered:
        timings_s: dict[str, float] = {}
        with timed(timings_s, "fetch"):
            image = self._fetcher.fetch(question.uri, deadline, question.task_id)
        outcome = rsvp(image, question.instruction, question.config.label_values, deadline)
        return self._traced(outcome, image, timings_s, rsvp, question, batch)

    def _refine(self, rsvp: RSVP, question: Question, batch: Batch, deadline: Deadline) -> _Answered:
        """The mask of the context's clicks and rectangle; the reasoner is never asked.

        Label Studio sends no prompt text with them: the text typed last on the task is what they correct.
        """
        timings_s: dict[str, float] = {}
        with timed(timings_s, "fetch"):
            image = self._images.get(
                question.uri, lambda: self._fetcher.fetch(question.uri, deadline, question.task_id), deadline
            )
        hints = read_hints(batch.context, question.config, *image.size)
        question = replace(question, instruction=self._last_instruction(question, batch))
        kept = self._flights.peek(_key(question, rsvp))
        remembered = fitting_label(kept.outcome.instances if kept else (), hints.label, question.config)
        outcome = refine(rsvp, image, hints, remembered, question.instruction)
        return self._traced(outcome, image, timings_s, rsvp, question, batch)

    def _note_prompt(self, question: Question, batch: Batch) -> None:
        if prompt_text(batch.context, question.config):
            with self._prompts_lock:
                self._prompts[batch.project, question.task_id] = question.instruction

    def _last_instruction(self, question: Question, batch: Batch) -> str:
        if prompt_text(batch.context, question.config):
            return question.instruction
        with self._prompts_lock:
            return self._prompts.get((batch.project, question.task_id), question.instruction)

    def _traced(
        self,
        outcome: Outcome,
        image: Image.Image,
        timings_s: dict[str, float],
        rsvp: RSVP,
        question: Question,
        batch: Batch,
    ) -> _Answered:
        """The outcome with its labels settled, its trace written and its picture let go."""
        outcome = settle_labels(outcome, question.config)
        outcome = replace(outcome, trace=replace(outcome.trace, timings_s=timings_s | dict(outcome.trace.timings_s)))
        self.metrics.observe(outcome)
        trace_id = self.traces.add(
            outcome,
            task=question.task_id,
            project=batch.project,
            image=shown_uri(question.uri),
            size_px=image.size,
            model_version=rsvp.version,
        )
        return _Answered(replace(outcome, trace=replace(outcome.trace, visual_prompt=None)), trace_id)

    def _refused(self, reason: EmptyReason, detail: str, task: Mapping[str, Any], batch: Batch) -> _Answered:
        outcome = Outcome.empty(reason, detail, Trace(instruction=""))
        self.metrics.observe(outcome)
        trace_id = self.traces.add(outcome, task=task.get("id"), project=batch.project, model_version=self.version)
        log.warning("task %s: empty, %s: %s (trace %s)", task.get("id"), reason, detail, trace_id)
        return _Answered(outcome, trace_id)


def _parsed(label_config: str) -> tuple[LabelConfig | None, str]:
    try:
        return parse_label_config(label_config), ""
    except LabelConfigError as error:
        return None, str(error)


def _key(question: Question, rsvp: RSVP) -> tuple[Hashable, ...]:
    return question.uri, question.instruction, question.config.labels, rsvp.version


def _image_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


def _kept_bytes(answered: _Answered) -> int | None:
    """Only what the same question would get again is kept."""
    if answered.outcome.reason not in FINAL_REASONS:
        return None
    return 1024 + sum(instance.mask.nbytes for instance in answered.outcome.instances)

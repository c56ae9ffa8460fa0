"""The work on one task, step by step: plain functions of plain values, whatever runs them.

    Work -ask-> Asked -look-> Seen -cut-> Answered

What a task itself makes go wrong ends as `Answered` with the reason, at any step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from rsvp_backend.answers import FINAL_REASONS, Question, read_task, settle_labels
from rsvp_backend.errors import DeadlineError, ImageError, InstructionError, RsvpError
from rsvp_backend.labelstudio.tags import LabelConfig
from rsvp_backend.pipeline import RSVP, Look
from rsvp_backend.timing import timed
from rsvp_backend.types import EmptyReason, Outcome, Trace

log = logging.getLogger(__name__)
Fetch = Callable[[Question], Image.Image]
"""A question's image, upright, RGB. Raises `ImageError`."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all tasks of a run share; see `read_task` for the last two."""

    config: LabelConfig
    instruction_field: str | None = None
    default_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One task: ``key`` tells it apart, ``task`` is as Label Studio's API gives it (``id`` and ``data``)."""

    key: str
    task: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The task's image and instruction are there."""

    work: Work
    question: Question
    image: Image.Image
    timings_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Stage 1 says where to look."""

    asked: Asked
    look: Look


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """The outcome, its labels settled. ``size_px``: width and height of the image, None where there is none."""

    work: Work
    outcome: Outcome
    uri: str = ""
    size_px: tuple[int, int] | None = None

    @property
    def final(self) -> bool:
        """It is an answer; else the task failed, and may be tried again."""
        return self.outcome.reason in FINAL_REASONS


def ask(work: Work, common: Common, fetch: Fetch) -> Asked | Answered:
    """Read the task and fetch its image. Raises what ``fetch`` raises besides: that is no fault of the task."""
    timings_s: dict[str, float] = {}
    uri = ""
    try:
        question = read_task(work.task, common.config, None, common.instruction_field, common.default_instruction)
        uri = question.uri
        with timed(timings_s, "fetch"):
            image = fetch(question)
    except InstructionError as error:
        return failed(work, EmptyReason.NO_INSTRUCTION, str(error))
    except (ImageError, DeadlineError) as error:
        return failed(work, EmptyReason.IMAGE, str(error), uri)
    except RsvpError:
        raise  # not this task's: Label Studio stays away, say
    except Exception as error:
        return failed(work, EmptyReason.INTERNAL, fault(work, error), uri)
    return Asked(work, question, image, timings_s)


def look(rsvp: RSVP, asked: Asked) -> Seen | Answered:
    """Stage 1."""
    try:
        found = rsvp.look(asked.image, asked.question.instruction, asked.question.config.label_values)
    except Exception as error:
        return _crashed(asked, error)
    return Seen(asked, found) if isinstance(found, Look) else answered(asked, found)


def cut(rsvp: RSVP, seen: Sequence[Seen]) -> list[Answered]:
    """Stage 2, several tasks at once; an answer each, in order."""
    try:
        outcomes = rsvp.cut([one.look for one in seen])
        return [answered(one.asked, outcome) for one, outcome in zip(seen, outcomes, strict=True)]
    except Exception as error:
        if len(seen) > 1:
            return [result for one in seen for result in cut(rsvp, [one])]
        return [_crashed(one.asked, error) for one in seen]


def answered(asked: Asked, outcome: Outcome) -> Answered:
    """``outcome`` with its labels settled and its fetching timed."""
    outcome = settle_labels(outcome, asked.question.config)
    trace = replace(outcome.trace, timings_s={**asked.timings_s, **outcome.trace.timings_s})
    return Answered(asked.work, replace(outcome, trace=trace), asked.question.uri, asked.image.size)


def failed(work: Work, reason: EmptyReason, detail: str, uri: str = "") -> Answered:
    return Answered(work, Outcome.empty(reason, detail, Trace(instruction="")), uri)


def fault(work: Work, error: Exception) -> str:
    """A fault of this program on one task is that task's failure: logged, and told in one line."""
    log.error("task %s failed", work.key, exc_info=error)
    return f"{type(error).__name__}: {error}"


def _crashed(asked: Asked, error: Exception) -> Answered:
    return failed(asked.work, EmptyReason.INTERNAL, fault(asked.work, error), asked.question.uri)

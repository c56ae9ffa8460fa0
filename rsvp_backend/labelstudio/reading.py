"""What a reading of annotations came to: how many corrections, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from rsvp_backend.training.samples import Origin

SHOWN_TASKS = 5


class Reason(StrEnum):
    """Why an annotation or a region is no correction."""

    SKIPPED = "skipped"
    IMPORTED = "imported or made in bulk, and never saved by a person"
    NOT_GROUND_TRUTH = "another annotation of the task is the ground truth"
    SUPERSEDED = "an older annotation of the same person"
    EMPTY = "submitted empty on a task without prediction"
    NO_IMAGE = "the task has no image, or it cannot be fetched"
    PROMPT = "drawn as a prompt for the model"
    OTHER_IMAGE = "on another image of the task"
    TURNED = "the image was turned in Label Studio"
    SWAPPED_SIZE = "width and height are swapped: made by a tool that ignores the photo's orientation"
    OTHER_SIZE = "made for an image of another size"
    DAMAGED = "the mask cannot be read"
    EMPTY_MASK = "the mask is empty"
    NO_TEXT = "neither an object nor a label"
    REDRAWN = "deleted, but drawn again or marked by another region of the same name"


@dataclass(slots=True)
class Reading:
    """What a reading came to; filled while `read_corrections` goes on, complete when it has ended.

    ``left_out``: reason -> how many annotations or regions; ``tasks_left_out``: the first few tasks of each reason;
    ``details``: the first error of each reason that has one.
    """

    tasks: int = 0
    corrections: Counter[Origin] = field(default_factory=Counter)
    left_out: Counter[Reason] = field(default_factory=Counter)
    tasks_left_out: dict[Reason, list[int]] = field(default_factory=dict)
    details: dict[Reason, str] = field(default_factory=dict)

    def leave_out(self, reason: Reason, task: int, count: int = 1, detail: str = "") -> None:
        if count < 1:
            return
        self.left_out[reason] += count
        shown = self.tasks_left_out.setdefault(reason, [])
        if task not in shown and len(shown) < SHOWN_TASKS:
            shown.append(task)
        if detail:
            self.details.setdefault(reason, detail)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.corrections[origin]} {origin}" for origin in Origin if self.corrections[origin])
        lines = [f"{self.corrections.total()} corrections of {self.tasks} tasks" + (f" ({counts})" if counts else "")]
        for reason, count in self.left_out.most_common():
            tasks = ", ".join(map(str, self.tasks_left_out[reason]))
            detail = f": {self.details[reason]}" if reason in self.details else ""
            lines.append(f"left out {count}, {reason} (tasks {tasks}){detail}")
        return "\n".join(lines)


class LeftOutError(Exception):
    """One region is no correction."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail

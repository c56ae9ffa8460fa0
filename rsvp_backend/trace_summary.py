"""`Summary`: the line of a list that stands for one trace, and what a list is narrowed down by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FOUND = "found"
EMPTY = "empty"
"""Stand for a reason: any mask at all, and none for whatever reason."""


@dataclass(frozen=True, slots=True)
class Summary:
    """``reason``: why there is no mask, `FOUND` otherwise; ``score``: the weakest mask's; ``project``: its number."""

    id: str
    time: str
    project: str
    task: str
    instruction: str
    reason: str
    version: str
    masks: int
    score: float | None
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Summary:
        scores = [float(instance["score"]) for instance in record["instances"]]
        return cls(
            id=str(record["id"]),
            time=str(record["time"]),
            project=str(record.get("project") or "").partition(".")[0],
            task="" if record.get("task") is None else str(record["task"]),
            instruction=str(record["instruction"]),
            reason=str(record["reason"] or FOUND),
            version=str(record.get("model_version") or ""),
            masks=len(scores),
            score=min(scores, default=None),
            seconds=sum(float(value) for value in record["timings_s"].values()),
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for; an empty text asks for all. ``reason`` may be `FOUND` or `EMPTY` as well."""

    reason: str = ""
    project: str = ""
    task: str = ""
    version: str = ""

    def fits(self, one: Summary) -> bool:
        reason = self.reason in ("", one.reason) or (self.reason == EMPTY and one.reason != FOUND)
        project = self.project.partition(".")[0]
        return (
            reason
            and project in ("", one.project)
            and self.task in ("", one.task)
            and self.version in ("", one.version)
        )

    def narrowed(self, summaries: Sequence[Summary]) -> list[Summary]:
        return [one for one in summaries if self.fits(one)]

"""A project's report: all figures of it, from its answers, and the same as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.reading import Reading
from rsvp_backend.reports.answers import Answer
from rsvp_backend.reports.over_time import Timeline, timeline
from rsvp_backend.reports.overlays import Tile, tile, worst
from rsvp_backend.reports.reading import Project, Seen, open_project, read_answers
from rsvp_backend.reports.saved import Saved, lead_times, saved
from rsvp_backend.reports.summary import Calibration, Group, Spread, Tally, by_annotator, by_label, by_version


@dataclass(frozen=True, slots=True)
class Wanted:
    """``url``: Label Studio as people see it, for links. ``names``: of annotators in place of their numbers.
    ``worst``: how many answers to show."""

    url: str
    names: bool = False
    minutes_by_hand: float | None = None
    worst: int = 20
    instruction_field: str | None = None
    max_pixels: int = ImageLimits().max_pixels


@dataclass(frozen=True, slots=True)
class Report:
    """``answers`` are in order of their submission, and everything else is made of them."""

    project: Project
    url: str
    made_at: datetime
    answers: tuple[Answer, ...]
    reading: Reading
    names: dict[int, str]
    all: Group
    versions: tuple[Group, ...]
    timeline: Timeline
    labels: tuple[tuple[str, Tally], ...]
    annotators: tuple[Group, ...]
    calibration: Calibration
    leads: tuple[tuple[str, Spread], ...]
    saved: Saved
    worst: tuple[Tile, ...] = ()

    def task_url(self, task: int) -> str:
        return f"{self.url}/projects/{self.project.id}/data?task={task}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; what is not known is null."""
        left_out = [
            {"reason": str(reason), "count": count, "first_tasks": self.reading.tasks_left_out[reason]}
            for reason, count in self.reading.left_out.most_common()
        ]
        shown = [(one.answer, self.task_url(one.answer.task)) for one in self.worst]
        record = {
            "project": {"id": self.project.id, "title": self.project.title},
            "made_at": self.made_at.isoformat(timespec="seconds"),
            "tasks_read": self.reading.tasks,
            "all": self.all.to_dict(),
            "versions": [group.to_dict() for group in self.versions],
            "time": {"unit": self.timeline.unit, "groups": [group.to_dict() for group in self.timeline.groups]},
            "labels": [{"name": name, **tally.to_dict()} for name, tally in self.labels],
            "annotators": [group.to_dict() for group in self.annotators],
            "calibration": self.calibration.to_dict(),
            "lead_s": {kind: spread.to_dict() for kind, spread in self.leads},
            "saved": self.saved.to_dict(),
            "worst": [{"task": one.task, "annotation": one.annotation, "iou": one.iou, "url": url}
                      for one, url in shown],
            "left_out": left_out,
        }  # fmt: skip
        cleaned: dict[str, Any] = _without_nan(record)
        return cleaned


def make_report(
    client: LabelStudioClient,
    project: int,
    fetcher: ImageFetcher,
    wanted: Wanted,
    seen: Seen = lambda _: None,
    told: Callable[[int | None], None] = lambda _: None,
) -> Report:
    """Read the project and count. ``told`` gets the number of tasks that will be read where it is known, ``seen`` each
    of them. Raises `LabelStudioError` and `LabelConfigError`."""
    opened, reading = open_project(client, project, fetcher, wanted.max_pixels), Reading()
    told(opened.annotated)
    answers = list(read_answers(client, opened, reading, seen=seen))
    names = people(client) if wanted.names and answers else {}
    tiles = [tile(client, opened, one, wanted.instruction_field) for one in worst(answers, wanted.worst)]
    return summarize(opened, answers, reading, wanted, names, tiles)


def summarize(
    project: Project,
    answers: Sequence[Answer],
    reading: Reading,
    wanted: Wanted,
    names: dict[int, str] | None = None,
    tiles: Sequence[Tile] = (),
) -> Report:
    """All figures of ``answers``."""
    ordered = sorted(answers, key=lambda one: (one.submitted or datetime.min.replace(tzinfo=UTC), one.annotation))
    return Report(
        project,
        wanted.url.rstrip("/"),
        datetime.now(UTC),
        tuple(ordered),
        reading,
        names or {},
        Group.of("all", ordered),
        tuple(by_version(ordered)),
        timeline(ordered),
        tuple(by_label(ordered)),
        tuple(by_annotator(ordered, names or {})),
        Calibration.of(ordered),
        tuple(lead_times(ordered)),
        saved(ordered, wanted.minutes_by_hand),
        tuple(tiles),
    )


def people(client: LabelStudioClient) -> dict[int, str]:
    """Names by number: first and last name, else the address. Raises `LabelStudioError`."""
    names = {}
    for user in client.users():
        full = " ".join(str(user.get(part) or "").strip() for part in ("first_name", "last_name")).strip()
        if isinstance(user.get("id"), int):
            names[user["id"]] = full or str(user.get("email") or f"annotator {user['id']}")
    return names


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Answers by the day, week or month of their submission."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from rsvp_backend.reports.answers import Answer
from rsvp_backend.reports.summary import Group, grouped

DAYS, WEEKS = 31, 60  # more of them would be too narrow to read


@dataclass(frozen=True, slots=True)
class Timeline:
    """``unit``: day, week (beginning on Monday) or month, UTC. ``groups`` are named by their first day, empty ones
    between included. ``begins``: place of the first group with an answer to each version, in order of the versions."""

    unit: str
    groups: tuple[Group, ...]
    begins: tuple[tuple[int, str], ...]

    @property
    def labels(self) -> list[str]:
        """Short names of the groups, for plots."""
        days = (date.fromisoformat(group.name) for group in self.groups)
        return [f"{day:%b %Y}" if self.unit == "month" else f"{day.day} {day:%b}" for day in days]


def timeline(answers: Sequence[Answer]) -> Timeline:
    """Answers whose time is not known are left out; ``answers`` in order of time."""
    dated = [(answer.submitted.date(), answer) for answer in answers if answer.submitted is not None]
    if not dated:
        return Timeline("day", (), ())
    first, last = dated[0][0], dated[-1][0]
    span_days = (last - first).days
    unit = "day" if span_days < DAYS else "week" if span_days < 7 * WEEKS else "month"
    found = grouped(dated, lambda pair: _floor(pair[0], unit))
    days = list(_steps(_floor(first, unit), last, unit))
    groups = tuple(Group.of(day.isoformat(), [answer for _, answer in found.get(day, [])]) for day in days)
    begins: dict[str, int] = {}
    for day, answer in dated:
        if answer.predicted:
            begins.setdefault(answer.version, days.index(_floor(day, unit)))
    return Timeline(unit, groups, tuple((place, version) for version, place in begins.items()))


def _floor(day: date, unit: str) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


def _steps(first: date, last: date, unit: str) -> Iterator[date]:
    step = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=31)}[unit]
    day = first
    while day <= last:
        yield day
        day = _floor(day + step, unit)

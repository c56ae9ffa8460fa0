"""Which version was current when: an append-only file of promotions and rollbacks, from which the way back follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from rsvp_backend.training import durable
from rsvp_backend.training.versions import VersionError, VersionState

Action = Literal["promote", "rollback"]


@dataclass(frozen=True, slots=True)
class Event:
    """``before`` was current, ``version`` is then; None: the base weights."""

    at: datetime
    action: Action
    before: str | None
    version: str | None

    @classmethod
    def now(cls, action: Action, before: str | None, version: str | None) -> Event:
        return cls(datetime.now(UTC), action, before, version)


_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def read(file: Path) -> list[Event]:
    """All events, the oldest first; a last line without its end was never finished and does not count."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [_EVENT.validate_json(line) for line in lines]
    except ValidationError:
        raise VersionError(f"{file} is damaged: a JSON object per line is expected; restore or remove it") from None


def add(file: Path, event: Event) -> None:
    durable.append(file, _EVENT.dump_json(event) + b"\n")


def drop_unfinished(file: Path) -> None:
    """Cut off a last line that was begun and not finished; the caller holds the lock."""
    if file.exists():
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            durable.replace(file, whole)


def way_back(events: Sequence[Event]) -> list[str | None]:
    """What was current before the current version, nearest last; rollbacks have taken their part of it."""
    stack: list[str | None] = []
    for event in events:
        if event.action == "promote":
            stack.append(event.before)
            continue
        while stack and stack.pop() != event.version:
            pass  # a rollback passes over versions that were deleted or damaged by then
    return stack


def states(events: Sequence[Event]) -> dict[str, VersionState]:
    """The state of every version that was ever promoted."""
    found: dict[str, VersionState] = {}
    for event in events:
        if event.action == "rollback" and event.before is not None:
            found[event.before] = VersionState.ROLLED_BACK
        if event.version is not None:
            found[event.version] = VersionState.PROMOTED
    return found

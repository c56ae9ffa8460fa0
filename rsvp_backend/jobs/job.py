"""`Job`: what is known about one lesson that runs, ran, or waits; and where such records are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from rsvp_backend.errors import RsvpError
from rsvp_backend.settings import Settings


class JobError(RsvpError):
    """The queue or its records cannot be read or written, or refuse a job."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Times are seconds since the epoch.

    ``why``: what asked for it; ``due``: not started before; ``done`` of ``total`` steps of ``stage`` (0: nobody knows);
    ``resumed``: how often its worker died while it ran; ``cancelling``: it is asked to end; ``result``: the lesson, of
    a job that is done; ``error``: one line, of one that failed.
    """

    id: int
    project: int
    state: State
    why: str
    created: float
    due: float
    started: float | None = None
    ended: float | None = None
    stage: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    resumed: int = 0
    cancelling: bool = False
    result: Mapping[str, Any] | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; times are UTC, ISO 8601."""
        return {
            "id": self.id, "project": self.project, "state": str(self.state), "why": self.why,
            "created": iso(self.created), "due": iso(self.due), "started": iso(self.started), "ended": iso(self.ended),
            "stage": self.stage, "text": self.text, "done": self.done, "total": self.total, "resumed": self.resumed,
            "cancelling": self.cancelling, "result": self.result, "error": self.error,
        }  # fmt: skip


def iso(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def one_line(text: str, longest: int = 500) -> str:
    """``text`` without line ends and control characters, at most ``longest`` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def missing(settings: Settings) -> str | None:
    """What must be set before anything can be learned; None: nothing."""
    wanted = {
        "RSVP_VERSIONS (a folder for what is learned)": settings.versions,
        "RSVP_LABEL_STUDIO_URL": settings.label_studio_url,
        "RSVP_LABEL_STUDIO_TOKEN": settings.label_studio_token,
    }
    names = [name for name, value in wanted.items() if value is None]
    return f"nothing is learned here: set {', '.join(names)}" if names else None


def jobs_folder(settings: Settings) -> Path:
    """Where the queue and the records are: beside the versions. Raises `JobError` where nothing can be learned."""
    if (lacking := missing(settings)) is not None or settings.work_folder is None:
        raise JobError(lacking or "")
    return settings.work_folder

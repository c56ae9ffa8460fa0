"""The instruction of a trace once more, under a version that is chosen: one at a time, and nothing is promoted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rsvp_backend.engine import Engine, NotReadyError
from rsvp_backend.errors import RsvpError
from rsvp_backend.pages import verdict
from rsvp_backend.pages.pictures import kept_original
from rsvp_backend.pages.trace_page import Choice
from rsvp_backend.serving.turns import Demand, Urgency
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import Deadline
from rsvp_backend.versioning import MODELS, served, under

Record = Mapping[str, Any]
_TITLES = {"vlsm": "segmenter", "reasoner": "reasoner"}


class AgainError(RsvpError):
    """The trace cannot be run again, or not now."""


class Again:
    """``timeout_s``: for one run, the wait for the models included. Safe to share by threads."""

    def __init__(self, engine: Engine, timeout_s: float) -> None:
        self._engine, self._timeout_s = engine, timeout_s
        self._alone = threading.Lock()

    def choices(self) -> tuple[Choice, ...]:
        """Every version of both models, the newest first, the base weights last. Raises `RsvpError` without any."""
        rsvp, found, lacking = self._engine.ready(), list[Choice](), list[str]()
        for of in MODELS:
            try:
                registry = served(rsvp, of).registry
                current = registry.current()
                names = [version.id for version in reversed(registry.list())]
            except VersionError as error:
                lacking.append(str(error))
                continue
            found += [Choice(of, name, _text(of, name, name == current)) for name in names]
            found.append(Choice(of, None, _text(of, "the base weights", current is None)))
        if not found:
            raise AgainError("; ".join(lacking))
        return tuple(found)

    def run(self, record: Record, of: str, version: str | None) -> str:
        """The id of the new trace. Raises `AgainError`, `VersionError`, `NotReadyError` and `DeadlineError`."""
        lacking = self.lacking(record)
        picture = kept_original(self._engine.traces, record["id"])
        if lacking or picture is None:
            raise AgainError(lacking or "the image of this trace is not kept any more: it cannot be run again")
        if not self._alone.acquire(blocking=False):
            raise AgainError("another comparison runs: try again when it is done")
        try:
            rsvp = under(self._engine.ready(), of, version)
            deadline = Deadline.after(self._timeout_s)
            with self._engine.turns.turn(Demand(Urgency.INTERACTIVE), deadline):
                outcome = rsvp(picture, record["instruction"], tuple(record.get("labels") or ()), deadline)
        finally:
            self._alone.release()
        return self._engine.traces.add(
            outcome, picture=picture, task=record.get("task"), project=record.get("project"), image=record.get("image"),
            size_px=picture.size, labels=record.get("labels"), model_version=rsvp.version, again_of=record["id"],
        )  # fmt: skip

    def lacking(self, record: Record) -> str:
        """Why the trace cannot be run again; empty where it can."""
        if not record["instruction"] or verdict.by_hand(record):
            return "Only what an instruction asked of both stages can be run again."
        if record.get("kept_px") is None:
            return "The image of this trace is not kept: it cannot be run again."
        return ""

    def offered(self, record: Record) -> tuple[tuple[Choice, ...], str]:
        """The versions, or why there are none."""
        lacking = self.lacking(record)
        if lacking:
            return (), lacking
        try:
            return self.choices(), ""
        except (AgainError, NotReadyError) as error:
            return (), f"Nothing to compare with: {error}"


def _text(of: str, name: str, current: bool) -> str:
    return f"{_TITLES[of]}: {name}{' (current)' if current else ''}"

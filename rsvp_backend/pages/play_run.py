"""`Run`: one try in the playground, as far as it has come. Written by one thread, read by others."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import Any

from PIL import Image

from rsvp_backend.pages import verdict
from rsvp_backend.pages.pictures import jpeg, tinted
from rsvp_backend.pages.play_asked import PlayAsked
from rsvp_backend.trace_pictures import kept_size
from rsvp_backend.traces import trace_record
from rsvp_backend.types import Instance, Outcome, Trace

JSON = dict[str, Any]
_ORDER = tuple(verdict.STAGES)


class Run:
    """``state``: waiting, running, done, or failed with ``error``."""

    def __init__(self, run_id: str, asked: PlayAsked, command: str) -> None:
        self.id, self.asked = run_id, asked
        self._lock = threading.Lock()
        self._told: JSON = {
            "id": run_id,
            "state": "waiting",
            "error": "",
            "command": command,
            "trace": None,
            "stages": [],
        }
        self._pictures: dict[str, bytes] = {}
        self.instances: tuple[Instance, ...] | None = None

    @property
    def ended(self) -> bool:
        return self._told["state"] in ("done", "failed")

    def begin(self, stage: str, trace: Trace | None = None) -> None:
        """``stage`` is what is done from now on; ``trace``: all that is known by then."""
        record = trace_record(Outcome((), trace or Trace("")))
        stages = [
            _stage(one) for one in verdict.stages(record) if one.state or _ORDER.index(one.name) >= _ORDER.index(stage)
        ]
        for one in stages:
            if one["name"] == stage:
                one["state"] = "running"
        self._tell(state="running", stages=stages, **_known(record))

    def show(self, name: str, picture: Image.Image) -> None:
        """A picture to look at while the run goes on."""
        size_px = kept_size(picture.size)
        file = jpeg(picture if picture.size == size_px else picture.resize(size_px))
        with self._lock:
            self._pictures[name] = file
            self._told["pictures"] = list(self._pictures)

    def done(self, outcome: Outcome, size_px: tuple[int, int], trace_id: str, version: str) -> None:
        """``size_px``: (width, height) of the image."""
        record = trace_record(replace(outcome, trace=replace(outcome.trace, visual_prompt=None)))
        if outcome.instances:
            with self._lock:
                self._pictures["mask"] = tinted(outcome.union(*size_px))
        self.instances = outcome.instances
        self._tell(
            state="done", stages=[_stage(one) for one in verdict.stages(record)], verdict=verdict.sentence(record),
            tone=verdict.tone(record), detail=outcome.detail, trace=trace_id, version=version,
            instances=record["instances"], pictures=list(self._pictures), notes=record["notes"], **_known(record),
        )  # fmt: skip

    def fail(self, error: str) -> None:
        self._tell(state="failed", error=error)

    def picture(self, name: str) -> bytes | None:
        with self._lock:
            return self._pictures.get(name)

    def to_dict(self) -> JSON:
        """JSON types only."""
        with self._lock:
            return dict(self._told)

    def _tell(self, **values: object) -> None:
        with self._lock:
            self._told |= values


def _stage(one: verdict.Stage) -> JSON:
    return asdict(one)


def _known(record: JSON) -> JSON:
    return {"proposals": record["proposals"], "raw_texts": record["raw_texts"], "crops": record["crops_xyxy"]}

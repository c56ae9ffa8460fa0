"""What happened to each computed task: the last records in memory and, if a folder is given, in files."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import OrderedDict
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend.security.request_ids import request_id
from rsvp_backend.types import Instance, Outcome, ZoomStep

log = logging.getLogger(__name__)
MAX_IN_MEMORY = 200
MAX_IN_FOLDER = 1000


def trace_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain JSON values, without pixels: what was asked, answered, found, how long, and why not."""
    trace = outcome.trace
    return {
        "instruction": trace.instruction,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "instances": [_instance(instance) for instance in outcome.instances],
        "proposals": [asdict(proposal) for proposal in trace.proposals],
        "crops_xyxy": [box.xyxy for box in trace.crops],
        "zooms": [_zoom(step) for step in trace.zooms],
        "raw_texts": list(trace.raw_texts),
        "timings_s": {stage: round(seconds, 4) for stage, seconds in trace.timings_s.items()},
        "notes": list(trace.notes),
    }


def _zoom(step: ZoomStep) -> dict[str, Any]:
    return {
        "object": step.object,
        "window_xyxy": step.window.xyxy,
        "found_xyxy": None if step.found is None else step.found.xyxy,
        "note": step.note,
        "raw_texts": list(step.raw_texts),
        "seconds": round(step.seconds, 4),
    }


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "object": instance.object,
        "label": instance.label,
        "score": round(float(instance.score), 4),
        "reasoning": instance.reasoning,
        "box_xyxy": instance.box.xyxy,
        "area_px": int(np.count_nonzero(instance.mask)),
    }


class TraceLog:
    """Keeps the newest `MAX_IN_MEMORY` records, and `MAX_IN_FOLDER` in ``folder``. Safe to share by threads.

    A folder that cannot be written (disk full, no permission) is logged and never fails a prediction.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, outcome: Outcome, on_disk: bool = True, **about: Any) -> str:
        """Store the outcome's record with ``about`` (task, model version...) and give its id.

        Without ``on_disk`` it is kept in memory only. ``request`` in it is the id of the request that computed it.
        """
        now = datetime.now(UTC)
        trace_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        record = {
            "id": trace_id,
            "time": now.isoformat(timespec="milliseconds"),
            "request": request_id(),
            **about,
            **trace_record(outcome),
        }
        with self._lock:
            self._records[trace_id] = record
            while len(self._records) > MAX_IN_MEMORY:
                self._records.popitem(last=False)
        if on_disk and self._folder is not None:
            self._write(self._folder, trace_id, record, outcome.trace.visual_prompt)
        return trace_id

    def recent(self) -> list[dict[str, Any]]:
        """All records in memory, newest first."""
        with self._lock:
            return list(reversed(self._records.values()))

    def get(self, trace_id: str) -> dict[str, Any] | None:
        with self._lock:
            return self._records.get(trace_id)

    def _write(self, folder: Path, trace_id: str, record: dict[str, Any], picture: Image.Image | None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if picture is not None:
                picture.save(folder / f"{trace_id}.png")
            (folder / f"{trace_id}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            # Ids begin with the time: the first names are the oldest.
            for old in sorted(folder.glob("*.json"))[:-MAX_IN_FOLDER]:
                old.with_suffix(".png").unlink(missing_ok=True)
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("trace %s is not written to %s: %s (RSVP_TRACES)", trace_id, folder, error.strerror)

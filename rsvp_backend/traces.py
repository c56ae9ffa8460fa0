"""What happened to each computed task: the last records in memory and, if a folder is given, in files."""

from __future__ import annotations

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
from rsvp_backend.trace_files import TraceFiles, TraceLimits
from rsvp_backend.trace_pictures import Pictures, encoded, kept_size
from rsvp_backend.trace_summary import Summary
from rsvp_backend.types import Instance, Outcome, ZoomStep

Record = dict[str, Any]
MAX_IN_MEMORY = 200
MEMORY_BYTES = 48 * 2**20
"""Pictures in memory, where no folder takes them."""


def trace_record(outcome: Outcome) -> Record:
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


def _zoom(step: ZoomStep) -> Record:
    return {
        "object": step.object,
        "window_xyxy": step.window.xyxy,
        "found_xyxy": None if step.found is None else step.found.xyxy,
        "note": step.note,
        "raw_texts": list(step.raw_texts),
        "seconds": round(step.seconds, 4),
    }


def _instance(instance: Instance) -> Record:
    return {
        "object": instance.object,
        "label": instance.label,
        "score": round(float(instance.score), 4),
        "reasoning": instance.reasoning,
        "box_xyxy": instance.box.xyxy,
        "area_px": int(np.count_nonzero(instance.mask)),
    }


class TraceLog:
    """Keeps the newest `MAX_IN_MEMORY` records, and in ``folder`` as many as ``limits`` allow.

    Safe to share by threads. Pictures go to the folder; without one, the newest `MEMORY_BYTES` of them stay in memory.
    ``public_url``: this server's address as people's browsers reach it. A folder that cannot be written (disk full, no
    permission) is logged and never fails a prediction.
    """

    def __init__(
        self, folder: Path | None = None, limits: TraceLimits | None = None, public_url: str | None = None
    ) -> None:
        self._files = None if folder is None else TraceFiles(folder, limits or TraceLimits())
        self._public_url = public_url
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._pictures: OrderedDict[str, Pictures] = OrderedDict()
        self._picture_bytes = 0
        self._lock = threading.Lock()

    def add(self, outcome: Outcome, on_disk: bool = True, picture: Image.Image | None = None, **about: Any) -> str:
        """Store the outcome's record with ``about`` (task, model version...) and give its id.

        Without ``on_disk`` it is kept in memory only. ``picture``: the image, RGB, in which the masks lie. ``request``
        in the record is the id of the request that computed it.
        """
        now = datetime.now(UTC)
        trace_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        record = {
            "id": trace_id,
            "time": now.isoformat(timespec="milliseconds"),
            "request": request_id(),
            **about,
            "kept_px": None if picture is None else kept_size(picture.size),
            **trace_record(outcome),
        }
        pictures = encoded(outcome, picture)
        with self._lock:
            self._records[trace_id] = record
            while len(self._records) > MAX_IN_MEMORY:
                self._records.popitem(last=False)
            if self._files is None:
                self._remember(trace_id, pictures)
        if on_disk and self._files is not None:
            self._files.write(trace_id, record, pictures)
        return trace_id

    def recent(self) -> list[Record]:
        """All records in memory, newest first."""
        with self._lock:
            return list(reversed(self._records.values()))

    def get(self, trace_id: str) -> Record | None:
        """From memory or the folder, where other processes of this machine leave theirs as well."""
        with self._lock:
            found = self._records.get(trace_id)
        return found if found is not None or self._files is None else self._files.read(trace_id)

    def picture(self, trace_id: str, name: str) -> bytes | None:
        """A picture's file: ``original``, ``marked`` (both JPEG) or ``mask-N`` (PNG); None where it is not kept."""
        if self._files is not None:
            return self._files.picture(trace_id, name)
        with self._lock:
            return self._pictures.get(trace_id, {}).get(name)

    def summaries(self) -> list[Summary]:
        """What is known of every trace, newest first."""
        with self._lock:
            found = {trace_id: Summary.of(record) for trace_id, record in self._records.items()}
        if self._files is not None:
            found = self._files.summaries() | found
        return [found[trace_id] for trace_id in sorted(found, reverse=True)]

    def address(self, trace_id: str) -> str | None:
        """Where people see the trace; None where this server's public address is not known."""
        return None if self._public_url is None else f"{self._public_url.rstrip('/')}/traces/{trace_id}"

    def _remember(self, trace_id: str, pictures: Pictures) -> None:
        """The caller holds the lock."""
        if not pictures:
            return
        self._pictures[trace_id] = pictures
        self._picture_bytes += sum(map(len, pictures.values()))
        while self._picture_bytes > MEMORY_BYTES or len(self._pictures) > MAX_IN_MEMORY:
            _, dropped = self._pictures.popitem(last=False)
            self._picture_bytes -= sum(map(len, dropped.values()))

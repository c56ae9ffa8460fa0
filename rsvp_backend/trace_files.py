"""`TraceFiles`: traces in a folder, kept by age and bytes. Several processes may write into the same one."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rsvp_backend.trace_pictures import Pictures
from rsvp_backend.trace_summary import Summary

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 60.0
"""Between two looks at what the folder holds, where little is written."""
_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
_PICTURE = re.compile(r"original|marked|mask-\d{1,2}")
_ROOM = 20
"""What is dropped makes room for this part of the limit, so that not every write looks at the whole folder."""


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """The oldest traces go once one of these is passed."""

    days: float = 30.0
    max_bytes: int = 2**30


class TraceFiles:
    """Per trace ``<id>.json`` and its pictures, ``<id>.<name>.jpg`` or ``.png``; other files are left alone.

    Ids begin with the time (UTC): the first names are the oldest. Safe to share by threads.
    """

    def __init__(self, folder: Path, limits: TraceLimits) -> None:
        self._folder, self._limits = folder, limits
        self._lock = threading.Lock()
        self._written, self._due_s = 0, float("-inf")
        self._summaries: dict[str, Summary] = {}

    def write(self, trace_id: str, record: Mapping[str, Any], pictures: Pictures) -> None:
        """The record last: who finds it finds its pictures."""
        text = json.dumps(record, indent=2) + "\n"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, file in pictures.items():
                self._path(trace_id, name).write_bytes(file)
            aside = self._folder / f"{trace_id}.part"
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._folder / f"{trace_id}.json")
            with self._lock:
                self._written += len(text) + sum(map(len, pictures.values()))
                self._drop_old()
        except OSError as error:
            log.warning("trace %s is not written to %s: %s (RSVP_TRACES)", trace_id, self._folder, error.strerror)

    def read(self, trace_id: str) -> dict[str, Any] | None:
        """None for what is no id, unknown, or damaged."""
        if not _ID.fullmatch(trace_id):
            return None
        try:
            record = json.loads((self._folder / f"{trace_id}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def picture(self, trace_id: str, name: str) -> bytes | None:
        if not _ID.fullmatch(trace_id) or not _PICTURE.fullmatch(name):
            return None
        try:
            return self._path(trace_id, name).read_bytes()
        except OSError:
            return None

    def summaries(self) -> dict[str, Summary]:
        """Of every whole record, by id. What was read once is not read again: records do not change."""
        with self._lock:
            try:
                self._drop_old()
                ids = {name.removesuffix(".json") for name in os.listdir(self._folder) if name.endswith(".json")}
            except OSError:
                ids = set()
            known = {trace_id: one for trace_id, one in self._summaries.items() if trace_id in ids}
            for trace_id in ids - known.keys():
                one = self._summary(trace_id)
                if one is not None:
                    known[trace_id] = one
            self._summaries = known
            return dict(known)

    def _summary(self, trace_id: str) -> Summary | None:
        record = self.read(trace_id)
        try:
            return None if record is None else Summary.of(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _path(self, trace_id: str, name: str) -> Path:
        return self._folder / f"{trace_id}.{name}.{'png' if name.startswith('mask') else 'jpg'}"

    def _drop_old(self) -> None:
        """Where it is time to. The caller holds the lock."""
        now_s = time.monotonic()
        if now_s < self._due_s and self._written < self._limits.max_bytes // _ROOM:
            return
        self._due_s, self._written = now_s + LOOK_AGAIN_S, 0
        files, oldest = self._by_id(), _id_of_age(self._limits.days)
        total = sum(size for found in files.values() for _, size in found)
        room = self._limits.max_bytes - self._limits.max_bytes // _ROOM
        for trace_id in sorted(files):
            if trace_id >= oldest and total <= room:
                break
            total -= sum(size for _, size in files[trace_id])
            for path, _ in sorted(files[trace_id], key=lambda one: not one[0].endswith(".json")):
                Path(path).unlink(missing_ok=True)

    def _by_id(self) -> dict[str, list[tuple[str, int]]]:
        """(path, bytes) of every trace's files; those that another process has just removed do not count."""
        found: dict[str, list[tuple[str, int]]] = {}
        if not self._folder.is_dir():
            return found
        with os.scandir(self._folder) as entries:
            for entry in entries:
                trace_id = entry.name.partition(".")[0]
                if _ID.fullmatch(trace_id):
                    try:
                        found.setdefault(trace_id, []).append((entry.path, entry.stat().st_size))
                    except FileNotFoundError:
                        continue
        return found


def _id_of_age(days: float) -> str:
    """What sorts before the ids of all that are younger."""
    return f"{datetime.now(UTC) - timedelta(days=days):%Y%m%dT%H%M%S}"

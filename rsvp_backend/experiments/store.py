"""The rows of a sweep on disk: one JSON object a line, each on the disk before the next question is asked."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsvp_backend.experiments.measuring import Row
from rsvp_backend.training import durable
from rsvp_backend.training.referring import DataError

log = logging.getLogger(__name__)
FILE = "rows.jsonl"


class Store:
    """Rows by variant, question, repeat and version; those of earlier versions stay in the file and are not mixed in.

    Safe to share by threads; processes take turns, see `alone`.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `DataError` where the folder cannot be written or holds something else."""
        self.path = folder / FILE
        self.rows: dict[tuple[str, str, int, str], Row] = {}
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._read()
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror} (--out)") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out. Raises `DataError` where one is at work."""
        try:
            with durable.locked(self.path, 0.0):
                yield
        except TimeoutError:
            raise DataError(f"{self.path}: another sweep is writing it: wait for it, or choose another --out") from None

    def add(self, row: Row) -> None:
        """Keep it; a kill right after loses nothing. Raises `DataError` on a full disk."""
        with self._lock:
            try:
                durable.append(self.path, json.dumps(row.to_dict()).encode() + b"\n")
            except OSError as error:
                raise DataError(f"{self.path} cannot be written: {error.strerror} (--out)") from None
            self.rows[row.key] = row

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError):
                raise DataError(f"{self.path}: line {number} is no row of a sweep: choose another --out") from None
            self.rows[row.key] = row
        if rest:  # the line that a kill cut off
            with self.path.open("r+b") as stream:
                stream.truncate(len(content) - len(rest))
        if self.rows:
            log.info("%s: %d answers were there before", self.path, len(self.rows))

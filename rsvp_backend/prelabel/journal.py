"""Two small files beside a run: which predictions were being sent when it ended, and which tasks failed.

Both are only ever added to while a run goes on: whatever a kill leaves of the last line is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsvp_backend.errors import RsvpError
from rsvp_backend.prelabel.running import Result
from rsvp_backend.training import durable

_LONGEST_BYTES = 2**20


class JournalError(RsvpError):
    """The work folder cannot be used, or another run uses it."""


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold ``folder`` for one run. Raises `JournalError` where another process holds it."""
    file = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = durable.locked(file, 0.0)
        lock.__enter__()
    except TimeoutError:
        raise JournalError(
            f"{what} is being pre-labelled by another process ({file}): wait until it has ended"
        ) from None
    except OSError as error:
        raise JournalError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


class Sending:
    """Tasks whose prediction was sent and not confirmed: one of them may be stored later than it looks."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: dict[int, str] = {}
        for line in _lines(file):
            if "sent" in line:
                self._open |= {int(task): str(line["version"]) for task in line["sent"]}
            for task in line.get("stored", ()):
                self._open.pop(int(task), None)

    @property
    def open(self) -> dict[int, str]:
        """Task -> version."""
        return dict(self._open)

    def sent(self, tasks: Collection[int], version: str) -> None:
        """Before the request."""
        self._open |= dict.fromkeys(tasks, version)
        self._add({"version": version, "sent": list(tasks)})

    def stored(self, tasks: Collection[int]) -> None:
        """After its answer."""
        for task in tasks:
            self._open.pop(task, None)
        if not self._open and self._file.stat().st_size > _LONGEST_BYTES:
            self.clear()
        else:
            self._add({"stored": list(tasks)})

    def clear(self) -> None:
        """All have been looked at."""
        self._open.clear()
        self._file.unlink(missing_ok=True)

    def _add(self, line: dict[str, Any]) -> None:
        _append(self._file, line)


class Failures:
    """Tasks that failed, by key, with the reason; kept from run to run until they are answered."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.known: dict[str, tuple[str, str]] = {}
        for line in _lines(file):
            if "reason" in line:
                self.known[str(line["task"])] = (str(line["reason"]), str(line.get("detail", "")))
            elif "task" in line:
                self.known.pop(str(line["task"]), None)

    def note(self, result: Result) -> None:
        """Take in what became of a task."""
        if result.state == "failed":
            self.known[result.key] = (str(result.reason), result.detail)
            _append(self._file, {"task": result.key, "reason": str(result.reason), "detail": result.detail})
        elif result.key in self.known:
            del self.known[result.key]
            _append(self._file, {"task": result.key})

    def forget(self, keys: Sequence[str]) -> None:
        """They are to do no more."""
        for key in keys:
            if self.known.pop(key, None) is not None:
                _append(self._file, {"task": key})

    def close(self) -> None:
        """Leave one line for each that is known."""
        lines = [{"task": key, "reason": reason, "detail": detail} for key, (reason, detail) in self.known.items()]
        if lines:
            durable.replace(self._file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        else:
            self._file.unlink(missing_ok=True)


def _append(file: Path, line: dict[str, Any]) -> None:
    """Not down to the disk: a killed process loses nothing, and after a power cut Label Studio itself is asked."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    if not file.read_bytes().endswith(b"\n"):  # a kill cut the last line off: what is added next begins a new one
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n")
    with file.open(encoding="utf-8", errors="replace") as stream:
        for text in stream:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line

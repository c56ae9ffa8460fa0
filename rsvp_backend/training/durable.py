"""Files that are whole or not there, whenever the process or the machine stops: written aside, flushed, renamed.

POSIX only: it locks by ``flock``, which the kernel lets go when a process dies, and flushes folders.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.02


@contextmanager
def locked(file: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of ``file``, between processes and threads. Raises `TimeoutError` after ``timeout_s``."""
    until_s = time.monotonic() + timeout_s
    with file.open("ab") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    raise TimeoutError(f"{file} was held by another process for {timeout_s:.0f} s") from None
                time.sleep(POLL_S)
        yield


def aside(target: Path) -> Path:
    """A hidden name beside ``target`` that nothing else has."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def write(file: Path, data: bytes) -> None:
    """Write a new file, down to the disk."""
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace(file: Path, data: bytes) -> None:
    """Give ``file`` another content at once: a reader sees the old or the new one."""
    new = aside(file)
    try:
        write(new, data)
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    flush_folder(file.parent)


def append(file: Path, line: bytes) -> None:
    """Add a line (with its line end) to ``file``, down to the disk."""
    with file.open("ab") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    flush_folder(file.parent)


def make_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder ``target`` with ``files`` by name, at once. Whoever stops midway leaves an `aside` name."""
    new = aside(target)
    new.mkdir()
    try:
        for name, data in files.items():
            write(new / name, data)
        flush_folder(new)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # gives back the space of a full disk
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """Names are on the disk only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

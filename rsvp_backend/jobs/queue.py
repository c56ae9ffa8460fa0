"""`JobQueue`: huey, which carries the ids of jobs from the server to the worker, at once or at their time.

Its messages are JSON: nothing that comes over a queue is unpickled.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from huey import Huey, RedisHuey, SqliteHuey
from huey.consumer import Consumer
from huey.registry import Message
from huey.serializer import Serializer
from redis import ConnectionPool, RedisError

from rsvp_backend.jobs.job import JobError

FILE = "queue.db"
TIMEOUT_S = 5.0
_POLL_S = 1.0


@dataclass(frozen=True)
class JobQueue:
    """The queue ``name``, in a file in ``folder``, or in Redis at ``redis`` (an address, which may hold a password).

    ``run``: what a worker does with an id. Everything raises `JobError`.
    """

    folder: Path
    name: str
    redis: str | None = None
    run: Callable[[int], None] = lambda _: None

    def send(self, job_id: int, due: float = 0.0) -> None:
        """Have the job looked at, not before ``due`` (seconds since the epoch)."""
        with self._told():
            wait_s = due - time.time()
            if wait_s > 0:
                self._task.schedule(args=(job_id,), delay=wait_s)
            else:
                self._task(job_id)

    def clear(self) -> None:
        """Forget all that was sent."""
        with self._told():
            self._huey.storage.flush_queue()
            self._huey.storage.flush_schedule()

    def consumer(self) -> Consumer:
        """What runs jobs, one at a time, once its ``run`` is called. After a signal that returns at once, and sets
        ``stop_flag``; the job may still run."""
        with self._told():
            assert self._task is not None  # known to huey from here on
            return self._huey.create_consumer(
                workers=1,
                periodic=False,
                initial_delay=0.05,
                max_delay=_POLL_S if self.redis is None else 10.0,  # Redis pushes: this is the pause after an error
                shutdown_timeout=0,
            )

    @cached_property
    def _huey(self) -> Huey:
        options: dict[str, Any] = {"results": False, "serializer": _JsonSerializer()}
        if self.redis is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return SqliteHuey(self.name, filename=str(self.folder / FILE), timeout=TIMEOUT_S, **options)
        pool = ConnectionPool.from_url(self.redis, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        return RedisHuey(self.name, connection_pool=pool, **options)

    @cached_property
    def _task(self) -> Any:
        def look_at(job_id: int) -> None:
            self.run(job_id)

        return self._huey.task(name="look_at")(look_at)

    @contextmanager
    def _told(self) -> Iterator[None]:
        where = self.folder / FILE if self.redis is None else "Redis (RSVP_QUEUE)"
        try:
            yield
        except (sqlite3.Error, RedisError, OSError) as error:
            raise JobError(f"the queue, {where}, cannot be used: {error}") from error


class _JsonSerializer(Serializer):  # type: ignore[misc]
    """huey's messages as JSON: a job's id and its time are all that they carry."""

    def _serialize(self, data: Message) -> bytes:
        known = {name: value for name, value in data._asdict().items() if value is not None}
        if data.eta is not None:
            known["eta"] = data.eta.isoformat()
        return json.dumps(known).encode()

    def _deserialize(self, data: bytes) -> Message:
        known = json.loads(bytes(data))
        if "eta" in known:
            known["eta"] = datetime.fromisoformat(known["eta"])
        return Message(**known)

"""`JobStore`: the records of all jobs, in one SQLite file that the server and the worker share.

The records are the truth; the queue only carries the ids of jobs to look at. A project has at most one queued and one
running job, which two indexes hold.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rsvp_backend.jobs.job import Job, JobError, State
from rsvp_backend.training import durable

FILE = "jobs.db"
Curve = tuple[tuple[int, float | None, float | None], ...]
"""(step, loss, held-out IoU) as it was told; None where it was not measured yet."""
KEPT = 200
"""Ended jobs that are kept."""
MAX_PROJECTS = 1000
"""Projects whose corrections are counted; who was counted longest ago is forgotten first."""
LAYOUT = 1
_CURVES = "create table if not exists curves (job integer primary key, points text not null)"
"""Also made where a file of the same layout lacks it."""
_SCHEMA = f"""
begin immediate;
create table if not exists jobs (
    id integer primary key autoincrement, project integer not null, state text not null, why text not null,
    created real not null, due real not null, started real, ended real,
    stage text not null default '', text text not null default '',
    done integer not null default 0, total integer not null default 0,
    resumed integer not null default 0, cancelling integer not null default 0, result text, error text);
create unique index if not exists one_queued on jobs (project) where state = 'queued';
create unique index if not exists one_running on jobs (project) where state = 'running';
create table if not exists logs (job integer primary key, lines text not null);
{_CURVES};
create table if not exists counts (project integer primary key, count integer not null, touched real not null);
create table if not exists store (name text not null);
insert into store select '{{name}}' where not exists (select 1 from store);
pragma user_version = {LAYOUT};
commit;
"""


class JobStore:
    """Records in ``folder``, which the first change makes. Safe to share by threads and processes.

    ``network``: the folder may be a network one: SQLite's plain journal, which needs file locks only. Every method
    raises `JobError`, also where the file stays locked for ``timeout_s``.
    """

    def __init__(self, folder: Path, network: bool = False, timeout_s: float = 5.0) -> None:
        self.path = folder / FILE
        self._journal = ("delete", "full") if network else ("wal", "normal")
        self._timeout_s = timeout_s

    @contextmanager
    def changing(self) -> Iterator[Changes]:
        """One transaction: all of it, or nothing where something is raised."""
        with self._opened() as connection:
            connection.execute("begin immediate")
            try:
                yield Changes(connection)
                connection.execute("commit")
            finally:
                if connection.in_transaction:
                    connection.execute("rollback")

    def all(self) -> tuple[Job, ...]:
        """All jobs, the newest first."""
        return self._read("select * from jobs order by id desc")

    def get(self, job_id: int) -> Job | None:
        found = self._read("select * from jobs where id = ?", job_id)
        return found[0] if found else None

    def log(self, job_id: int) -> list[str]:
        """The last lines of the job's log."""
        if not self.path.exists():
            return []
        with self._opened() as connection:
            row = connection.execute("select lines from logs where job = ?", (job_id,)).fetchone()
        return list(json.loads(row["lines"])) if row else []

    def curve(self, job_id: int) -> Curve:
        """What was measured while the job ran; records of an earlier release have none."""
        if not self.path.exists():
            return ()
        with self._opened() as connection:
            if not connection.execute("select 1 from sqlite_master where name = 'curves'").fetchone():
                return ()
            row = connection.execute("select points from curves where job = ?", (job_id,)).fetchone()
        return tuple(tuple(point) for point in json.loads(row["points"])) if row else ()

    def name(self) -> str:
        """Unlike that of any other store: what its queue is called, where several share a Redis."""
        with self._opened() as connection:
            return str(connection.execute("select name from store").fetchone()["name"])

    def _read(self, query: str, *values: object) -> tuple[Job, ...]:
        if not self.path.exists():
            return ()
        with self._opened() as connection:
            return tuple(_job(row) for row in connection.execute(query, values))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None)
            with closing(connection):
                self._prepare(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise JobError(f"{self.path} cannot be used: {error}") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        journal, synchronous = self._journal
        connection.execute(f"pragma synchronous = {synchronous}")
        (layout,) = connection.execute("pragma user_version").fetchone()
        if layout not in (0, LAYOUT):
            raise JobError(f"{self.path} has layout {layout}, {LAYOUT} is expected: it is another release's, move it")
        if layout == 0 or connection.execute("pragma journal_mode").fetchone()[0] != journal:
            # SQLite does not wait where two processes change the kind of journal.
            with durable.locked(self.path.with_suffix(".lock"), self._timeout_s):
                connection.execute(f"pragma journal_mode = {journal}")
                connection.executescript(_SCHEMA.format(name=f"rsvp{uuid.uuid4().hex[:12]}"))


class Changes:
    """What can be done inside of `JobStore.changing`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def one(self, job_id: int) -> Job | None:
        return next(iter(self._jobs("id = ?", job_id)), None)

    def with_state(self, state: State, project: int | None = None) -> list[Job]:
        if project is None:
            return self._jobs("state = ? order by due, id", state)
        return self._jobs("state = ? and project = ?", state, project)

    def add(self, project: int, why: str, due: float) -> Job:
        """A queued job; what ended long ago is forgotten."""
        values = (project, State.QUEUED, why, time.time(), due)
        query = "insert into jobs (project, state, why, created, due) values (?, ?, ?, ?, ?)"
        number = self._connection.execute(query, values).lastrowid
        ended = "select id from jobs where ended is not null order by ended desc limit -1 offset ?"
        self._connection.execute(f"delete from jobs where id in ({ended})", (KEPT,))
        self._connection.execute(_CURVES)
        for table in ("logs", "curves"):
            self._connection.execute(f"delete from {table} where job not in (select id from jobs)")
        (job,) = self._jobs("id = ?", number)
        return job

    def update(self, job_id: int, **values: object) -> None:
        """``values``: columns of a job; ``result`` is any JSON object."""
        if "result" in values:
            values["result"] = json.dumps(values["result"])
        columns = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(f"update jobs set {columns} where id = ?", (*values.values(), job_id))

    def end(self, job_id: int, state: State, **values: object) -> None:
        self.update(job_id, state=state, ended=time.time(), cancelling=False, **values)

    def keep_log(self, job_id: int, lines: Sequence[str]) -> None:
        self._connection.execute("insert or replace into logs values (?, ?)", (job_id, json.dumps(list(lines))))

    def keep_curve(self, job_id: int, points: Curve) -> None:
        self._connection.execute(_CURVES)
        self._connection.execute("insert or replace into curves values (?, ?)", (job_id, json.dumps(points)))

    def count(self, project: int, more: int) -> int:
        """Add to the project's count of corrections, and give it."""
        query = (
            "insert into counts values (?, ?, ?) on conflict (project) do update set "
            "count = count + excluded.count, touched = excluded.touched returning count"
        )
        row = self._connection.execute(query, (project, more, time.time())).fetchone()
        oldest = "select project from counts order by touched desc limit -1 offset ?"
        self._connection.execute(f"delete from counts where project in ({oldest})", (MAX_PROJECTS,))
        return int(row["count"])

    def count_anew(self, project: int) -> None:
        self._connection.execute("update counts set count = 0 where project = ?", (project,))

    def _jobs(self, where: str, *values: object) -> list[Job]:
        return [_job(row) for row in self._connection.execute(f"select * from jobs where {where}", values)]


def _job(row: sqlite3.Row) -> Job:
    known: dict[str, Any] = dict(row)
    result = None if known["result"] is None else json.loads(known["result"])
    changed = {"state": State(known["state"]), "cancelling": bool(known["cancelling"]), "result": result}
    return Job(**(known | changed))

"""`Backlog`: tasks that did not fit into a ``/predict`` and are answered later, in one SQLite file.

A task stands in it once, however often it was asked for. It holds no images and no answers: the task's data are read
from Label Studio when its turn comes.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rsvp_backend.errors import RsvpError
from rsvp_backend.settings import Settings

LAYOUT = 1
MAX_FAILED = 1000
"""Failed tasks that are listed; the oldest are forgotten first."""
LACKING = (
    "set RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN: what does not fit into a request is then answered later"
)
SWITCHED_OFF = "RSVP_BACKLOG_TASKS is 0: what does not fit into a request is not answered later"
_STATE_HOME = Path("~/.local/state/rsvp-backend")
_SCHEMA = f"""
begin immediate;
create table if not exists configs (digest text primary key, xml text not null);
create table if not exists tasks (
    project integer not null, task integer not null, state text not null, config text not null, instruction text,
    asked real not null, due real not null, tries integer not null default 0, why text not null default '',
    primary key (project, task)) without rowid;
create index if not exists by_due on tasks (state, due);
pragma user_version = {LAYOUT};
commit;
"""
_ADD = """insert into tasks (project, task, state, config, instruction, asked, due) values (?, ?, 'waiting', ?, ?, ?, ?)
on conflict (project, task) do update set state = 'waiting', config = excluded.config, tries = 0, why = '',
instruction = excluded.instruction, asked = excluded.asked, due = excluded.due"""


class BacklogError(RsvpError):
    """The backlog's file cannot be used."""


class Standing(StrEnum):
    """``stored``: Label Studio holds the answer, and is looked at again for an empty one that came after it."""

    WAITING = "waiting"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One task. ``asked`` and ``due`` are seconds since 1970; ``why``: what the last try came to."""

    project: int
    task: int
    state: Standing
    label_config: str
    default_instruction: str | None
    asked: float
    due: float
    tries: int
    why: str

    @property
    def key(self) -> tuple[int, int]:
        return self.project, self.task


class Backlog:
    """Safe to share by threads and processes. The first task makes the file. Every method raises `BacklogError`."""

    def __init__(self, path: Path, max_tasks: int = 100_000, timeout_s: float = 2.0) -> None:
        self.path = path
        self._max_tasks = max_tasks
        self._timeout_s = timeout_s
        self.added = threading.Event()
        """Set whenever there is more to do."""

    @classmethod
    def of(cls, settings: Settings) -> tuple[Backlog | None, str]:
        """The settings' backlog, else None and what they lack."""
        if settings.label_studio_url is None or settings.label_studio_token is None:
            return None, LACKING
        if settings.backlog_tasks == 0:
            return None, SWITCHED_OFF
        # Project and task ids mean something in one Label Studio only, and a version is one server's.
        about = f"{settings.label_studio_url.rstrip('/')} {settings.port}"
        name = f"backlog-{hashlib.sha256(about.encode()).hexdigest()[:8]}.db"
        folder = settings.backlog or settings.work_folder or _STATE_HOME
        return cls(folder.expanduser() / name, settings.backlog_tasks), ""

    def add(self, project: int, tasks: Sequence[int], label_config: str, instruction: str | None) -> list[int]:
        """Take ``tasks`` in, as far as there is room: gives those that wait now. ``instruction``: the project's."""
        now, digest = time.time(), hashlib.sha256(label_config.encode()).hexdigest()
        with self._opened() as database, _transaction(database):
            (held,) = database.execute("select count(*) from tasks where state != 'failed'").fetchone()
            known = {task for (task,) in database.execute(
                "select task from tasks where project = ? and state != 'failed'", (project,)
            )}  # fmt: skip
            new = [task for task in dict.fromkeys(tasks) if task not in known]
            taken = [task for task in tasks if task in known] + new[: max(0, self._max_tasks - held)]
            database.execute("insert or ignore into configs values (?, ?)", (digest, label_config))
            database.executemany(_ADD, [(project, task, digest, instruction, now, now) for task in taken])
            database.execute("delete from configs where digest not in (select config from tasks)")
        self.added.set()
        return taken

    def answered(self, project: int, tasks: Collection[int], look_after_s: float) -> None:
        """Label Studio is being given the answers of ``tasks``: those of them that wait are looked at later."""
        if not self.path.exists():
            return
        now = time.time()
        with self._opened() as database, _transaction(database):
            database.executemany(
                "update tasks set asked = ?, due = ? where project = ? and task = ? and state != 'failed'",
                [(now, now + look_after_s, project, task) for task in tasks],
            )

    def due(self, most: int) -> list[Entry]:
        """Entries whose time has come, at most ``most``: first those to look at once more, which is soon done."""
        return self._read(
            "where state != 'failed' and due <= ? order by state = 'waiting', due, task limit ?", time.time(), most
        )

    def later(self, entry: Entry, state: Standing, due: float, tries: int = 0, why: str = "") -> None:
        """Look at ``entry`` again; nothing where it was asked for anew meanwhile."""
        values = (state, due, tries, why, *entry.key, entry.asked)
        self._change("update tasks set state = ?, due = ?, tries = ?, why = ? where project = ? and task = ? "
                     "and asked = ?", *values)  # fmt: skip

    def fail(self, entry: Entry, why: str) -> None:
        """Give ``entry`` up, and say why."""
        self.later(entry, Standing.FAILED, time.time(), entry.tries + 1, why)
        self._change(
            "delete from tasks where state = 'failed' and (project, task) not in "
            "(select project, task from tasks where state = 'failed' order by due desc limit ?)", MAX_FAILED
        )  # fmt: skip

    def remove(self, entry: Entry) -> None:
        self._change("delete from tasks where project = ? and task = ? and asked = ?", *entry.key, entry.asked)

    def counts(self) -> dict[Standing, int]:
        found = dict.fromkeys(Standing, 0)
        if self.path.exists():
            with self._opened() as database:
                rows = database.execute("select state, count(*) from tasks group by state").fetchall()
            found |= {Standing(state): count for state, count in rows}
        return found

    def listed(self, state: Standing, most: int = 200) -> list[Entry]:
        """Those that come next, of failed ones the newest."""
        order = "due desc" if state is Standing.FAILED else "due, task"
        return self._read(f"where state = ? order by {order} limit ?", state, most)

    def _read(self, rest: str, *values: object) -> list[Entry]:
        if not self.path.exists():
            return []
        columns = "project, task, state, xml, instruction, asked, due, tries, why"
        query = f"select {columns} from tasks join configs on digest = config {rest}"
        with self._opened() as database:
            return [Entry(row[0], row[1], Standing(row[2]), *row[3:]) for row in database.execute(query, values)]

    def _change(self, statement: str, *values: object) -> None:
        with self._opened() as database:
            database.execute(statement, values)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None)) as database:
                self._prepare(database)
                yield database
        except (sqlite3.Error, OSError) as error:
            raise BacklogError(f"{self.path} (RSVP_BACKLOG) cannot be used: {error}") from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("pragma synchronous = normal")
        (layout,) = database.execute("pragma user_version").fetchone()
        if layout not in (0, LAYOUT):
            raise BacklogError(
                f"{self.path} has layout {layout}, {LAYOUT} is expected: it is another release's, move it away"
            )
        if layout == 0:
            database.execute("pragma journal_mode = wal")
            database.executescript(_SCHEMA)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("begin immediate")
    try:
        yield
        database.execute("commit")
    finally:
        if database.in_transaction:
            database.execute("rollback")

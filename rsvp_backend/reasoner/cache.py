"""A reasoner that is asked each question once: answers are kept on disk, equal questions under way share one call."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from rsvp_backend.errors import DeadlineError
from rsvp_backend.flights import Flights
from rsvp_backend.types import Answer, Deadline, Marks, Query, Reasoner

log = logging.getLogger(__name__)
FILE_NAME = "answers.sqlite"
LOCK_WAIT_S = 2.0
_ROW_BYTES = 200  # key, times and index of a row, about
_ANSWER = TypeAdapter(Answer)
_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    reasoner TEXT NOT NULL, instruction TEXT NOT NULL, answer TEXT NOT NULL, bytes INTEGER NOT NULL)"""
_INDEX = "CREATE INDEX IF NOT EXISTS answers_bytes ON answers (bytes)"  # their sum is read without the texts


def question_key(visual_prompt: Image.Image, query: Query, marks: Marks, version: str) -> str:
    """Digest of all that decides on an answer; ``version``, the reasoner's, covers model, prompt and decoding."""
    about = [version, visual_prompt.mode, visual_prompt.size, asdict(query), asdict(marks)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(visual_prompt.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class AnswerStore:
    """Answers in one SQLite file, the oldest ones dropped beyond ``max_bytes``; shared by threads and processes.

    A file that is damaged, locked or out of reach is logged and never fails a question.
    """

    folder: Path
    max_bytes: int = 256 * 2**20

    @property
    def path(self) -> Path:
        return self.folder / FILE_NAME

    def get(self, key: str) -> Answer | None:
        with self._guarded(), self._open() as database:
            row = database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else _read(row[0])
        return None

    def put(self, key: str, answer: Answer, query: Query, version: str) -> None:
        text = _ANSWER.dump_json(answer).decode()
        size_bytes = len(text.encode()) + len(query.instruction.encode()) + _ROW_BYTES
        row = (key, version, query.instruction, text, size_bytes)
        with self._guarded(), self._open() as database, database:
            database.execute(
                "REPLACE INTO answers (key, reasoner, instruction, answer, bytes) VALUES (?, ?, ?, ?, ?)", row
            )
            self._drop_oldest(database)

    def _drop_oldest(self, database: sqlite3.Connection) -> None:
        (total_bytes,) = database.execute("SELECT sum(bytes) FROM answers").fetchone()
        while total_bytes > self.max_bytes:
            row_id, size_bytes = database.execute("SELECT rowid, bytes FROM answers ORDER BY rowid LIMIT 1").fetchone()
            database.execute("DELETE FROM answers WHERE rowid = ?", (row_id,))
            total_bytes -= size_bytes

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=LOCK_WAIT_S)) as database:
            database.execute(_TABLE)
            database.execute(_INDEX)
            yield database

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            log.warning(
                "answers in %s are neither read nor kept: %s (delete a damaged file, or unset RSVP_ANSWER_CACHE)",
                self.path, error,
            )  # fmt: skip


class CachedReasoner:
    """A `Reasoner` around another one, with the same version. ``store``: None keeps no answers, calls are still shared.

    Failures and invalid answers are not kept. Counts its questions: ``stored``, ``shared`` (with one under way) and
    ``asked``.
    """

    def __init__(self, inner: Reasoner, store: AnswerStore | None = None) -> None:
        self.inner = inner
        self.store = store
        self._flights: Flights[Answer] = Flights(lambda _: None)
        self._counts: Counter[str] = Counter({"stored": 0, "shared": 0, "asked": 0})
        self._lock = threading.Lock()

    def over(self, inner: Reasoner) -> CachedReasoner:
        """The same store and counts around another reasoner."""
        other = CachedReasoner(inner, self.store)
        other._counts, other._lock = self._counts, self._lock
        return other

    @property
    def version(self) -> str:
        return self.inner.version

    @property
    def canvas_px(self) -> tuple[int, int] | None:
        return self.inner.canvas_px

    @property
    def max_side_px(self) -> int | None:
        return self.inner.max_side_px

    @property
    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`. Who waits for another's call still has a deadline of its own."""
        key = question_key(visual_prompt, query, marks, self.version)
        computed_here = False

        def compute() -> Answer:
            nonlocal computed_here
            computed_here = True
            return self._compute(key, visual_prompt, query, marks, deadline)

        while True:
            try:
                answer = self._flights.get(key, compute, deadline)
            except DeadlineError:
                if computed_here or deadline is None or deadline.expired:
                    raise
                log.info("the call that was waited for ran out of its own time: asking again")
            else:
                if not computed_here:
                    self._count("shared")
                return answer

    def _compute(
        self, key: str, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None
    ) -> Answer:
        stored = self.store.get(key) if self.store is not None else None
        if stored is not None:
            self._count("stored")
            return stored
        self._count("asked")
        answer = self.inner.propose(visual_prompt, query, marks, deadline)
        if self.store is not None:
            self.store.put(key, answer, query, self.version)
        return answer

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _read(text: str) -> Answer | None:
    """The stored answer; None for one that another release wrote in another form."""
    try:
        return _ANSWER.validate_json(text)
    except ValidationError:
        return None

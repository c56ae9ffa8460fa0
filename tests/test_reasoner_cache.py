"""cache.py: what makes two questions equal, what is kept how long, and that no damage to the file fails a question."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fake_models import FakeReasoner, FakeSegmenter
from PIL import Image

from rsvp_backend.errors import DeadlineError, ReasonerError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.reasoner import cache
from rsvp_backend.reasoner.cache import AnswerStore, CachedReasoner
from rsvp_backend.types import Answer, Deadline, Marks, Proposal, Query, Regions

MARKS = Marks()
IMAGE = Image.new("RGB", (90, 60), "navy")


def ask(reasoner: CachedReasoner, instruction: str = "the cup", deadline: Deadline | None = None) -> Answer:
    return reasoner.propose(IMAGE, Query(instruction), MARKS, deadline)


def test_an_answer_is_asked_for_once_also_by_a_later_process(tmp_path: Path) -> None:
    first, second = FakeReasoner(), FakeReasoner()
    earlier, later = (CachedReasoner(inner, AnswerStore(tmp_path)) for inner in (first, second))
    assert ask(earlier) == ask(earlier) == ask(later)
    assert (len(first.asked), len(second.asked)) == (1, 0)
    assert earlier.counts == {"asked": 1, "stored": 1, "shared": 0}
    assert later.counts == {"asked": 0, "stored": 1, "shared": 0}


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    proposals = (
        Proposal("größere Tasse", True, Regions(rows=(1, 2), columns=(9,)), "because…", "Mug"),
        Proposal("fork", False, Regions(), ""),
    )
    answer = Answer(proposals, ("<think>…</think>{", '{"proposals": []}'))
    AnswerStore(tmp_path).put("key", answer, Query("the cup"), "version")
    assert AnswerStore(tmp_path).get("key") == answer
    assert AnswerStore(tmp_path).get("other") is None


def test_everything_that_decides_on_an_answer_is_in_the_key() -> None:
    other = IMAGE.copy()
    other.putpixel((89, 59), (0, 0, 129))
    query = Query("the cup", ("Mug", "Plate"))
    asked = [
        (IMAGE, query, MARKS, "v1"),
        (other, query, MARKS, "v1"),
        (IMAGE.resize((60, 90)), query, MARKS, "v1"),
        (IMAGE, Query("the cups", query.labels), MARKS, "v1"),
        (IMAGE, Query("the cup", ("Plate", "Mug")), MARKS, "v1"),
        (IMAGE, query, Marks("cells"), "v1"),
        (IMAGE, query, Marks("bands", 9, 8), "v1"),
        (IMAGE, query, MARKS, "v2"),
    ]
    assert len({cache.question_key(*question) for question in asked}) == len(asked)
    assert cache.question_key(*asked[0]) == cache.question_key(IMAGE.copy(), query, Marks(), "v1")


def test_failures_are_not_kept(tmp_path: Path) -> None:
    inner = FakeReasoner()
    reasoner = CachedReasoner(inner, AnswerStore(tmp_path))
    for _ in range(2):
        with pytest.raises(ReasonerError):
            ask(reasoner, "broken")
    assert len(inner.asked) == 2


def test_the_wrapper_changes_nothing_for_the_pipeline(tmp_path: Path) -> None:
    inner = FakeReasoner(canvas_px=(32, 32), max_side_px=64)
    reasoner = CachedReasoner(inner, AnswerStore(tmp_path))
    assert (reasoner.version, reasoner.canvas_px, reasoner.max_side_px) == (inner.version, (32, 32), 64)
    plain, cached = (RSVP(model, FakeSegmenter()) for model in (inner, reasoner))
    assert cached.version == plain.version
    assert cached(IMAGE, "the cup").trace.proposals == plain(IMAGE, "the cup").trace.proposals


def test_the_oldest_answers_are_dropped_at_the_limit(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, max_bytes=10_000)
    answer = Answer((), ("x" * 2_000,))
    for n in range(20):
        store.put(f"key {n}", answer, Query("the cup"), "v")
    with closing(sqlite3.connect(store.path)) as database:
        (total_bytes,) = database.execute("SELECT sum(bytes) FROM answers").fetchone()
    assert 8_000 < total_bytes <= 10_000
    assert [n for n in range(20) if store.get(f"key {n}") is not None] == [16, 17, 18, 19]
    store.put("huge", Answer((), ("x" * 20_000,)), Query("the cup"), "v")
    assert store.get("huge") is None


def test_the_documented_columns_can_be_read(tmp_path: Path) -> None:
    ask(CachedReasoner(FakeReasoner(), AnswerStore(tmp_path)))
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as database:
        query = "SELECT created, reasoner, instruction, answer ->> '$.proposals[0].object' FROM answers"
        (row,) = database.execute(query).fetchall()
    assert row[0].endswith("Z")
    assert row[1:] == ("fake-reasoner", "the cup", "cup")


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.rollback()


def test_a_damaged_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database " * 1000)
    inner = FakeReasoner()
    reasoner = CachedReasoner(inner, AnswerStore(tmp_path))
    assert ask(reasoner) == ask(reasoner)
    assert len(inner.asked) == 2
    assert "not a database (delete a damaged file" in caplog.text


def test_a_row_in_another_form_is_asked_for_anew(tmp_path: Path) -> None:
    inner = FakeReasoner()
    reasoner = CachedReasoner(inner, AnswerStore(tmp_path))
    expected = ask(reasoner)
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as database, database:
        database.execute("UPDATE answers SET answer = '{\"proposals\": 3}'")
    assert ask(reasoner) == ask(reasoner) == expected
    assert len(inner.asked) == 2


def test_a_locked_file_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCK_WAIT_S", 0.05)
    reasoner = CachedReasoner(FakeReasoner(), AnswerStore(tmp_path))
    ask(reasoner)
    with write_lock(tmp_path / "answers.sqlite"):
        ask(reasoner)
        ask(reasoner, "the plate")
    assert "database is locked" in caplog.text
    assert reasoner.counts == {"asked": 3, "stored": 0, "shared": 0}


def test_a_folder_out_of_reach_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert ask(CachedReasoner(FakeReasoner(), AnswerStore(tmp_path / "file" / "folder"))).proposals
    assert "neither read nor kept" in caplog.text


def test_equal_questions_under_way_are_one_call() -> None:
    inner = FakeReasoner()
    inner.gate.clear()
    reasoner = CachedReasoner(inner)
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(ask, reasoner)
        assert inner.entered.wait(10)
        late = [threads.submit(ask, reasoner, "the cup", Deadline.after(0.05)), threads.submit(ask, reasoner)]
        other = threads.submit(ask, reasoner, "the plate")
        with pytest.raises(DeadlineError):
            late[0].result(10)
        inner.gate.set()
        assert first.result(10) == late[1].result(10)
        assert other.result(10).proposals[0].object == "plate"
    assert sorted(query.instruction for query in inner.asked) == ["the cup", "the plate"]
    assert reasoner.counts["asked"] == 2


class ImpatientOnce(FakeReasoner):
    """Its first call ends by its deadline, as soon as the gate opens."""

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        answer = super().propose(visual_prompt, query, marks, deadline)
        if len(self.asked) == 1:
            raise DeadlineError("over")
        return answer


def test_the_end_of_anothers_time_is_not_ones_own() -> None:
    inner = ImpatientOnce()
    inner.gate.clear()
    reasoner = CachedReasoner(inner)
    waiting = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, reasoner, "the cup", Deadline.after(0.05))
        assert inner.entered.wait(10)

        def second_question() -> Answer:
            waiting.set()
            return ask(reasoner, "the cup", Deadline.after(60))

        second: Future[Answer] = threads.submit(second_question)
        assert waiting.wait(10)
        inner.gate.set()
        with pytest.raises(DeadlineError):
            first.result(10)
        assert second.result(10).proposals[0].object == "cup"
    assert len(inner.asked) == 2

"""Records and queue of training jobs: one at a time for each project, counted, merged, recovered, shown."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_lessons import Learned, Note

from rsvp_backend.jobs import page, service, worker
from rsvp_backend.jobs.job import Job, JobError, State, jobs_folder, missing, one_line
from rsvp_backend.jobs.running import CURVE_POINTS, LOG_LINES, Running, Tell, finite
from rsvp_backend.jobs.service import MAX_QUEUED, MAX_RESUMED, Jobs
from rsvp_backend.jobs.store import KEPT, MAX_PROJECTS, JobStore
from rsvp_backend.jobs.worker import Worker
from rsvp_backend.settings import Settings

EVIL = "<script>alert('x')</script>"
JOB = Job(3, 1, State.QUEUED, "25 corrections", created=1e9, due=1e9)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "work")


def settings(tmp_path: Path, **more: Any) -> Settings:
    account = {"label_studio_url": "http://127.0.0.1:9", "label_studio_token": "0123456789abcdef"}
    return Settings(versions=tmp_path / "versions", **(account | more))


def sent(jobs: Jobs) -> list[int]:
    """The ids that wait in the queue, at once or at their time."""
    huey = jobs.queue._huey
    return sorted(task.args[0] for task in [*huey.pending(), *huey.scheduled()])


def states(jobs: Jobs) -> list[str]:
    """The oldest job first."""
    return [str(job.state) for job in reversed(jobs.store.all())]


# --- one at a time -----------------------------------------------------------------------------------------------


def test_one_waits_and_one_runs_for_each_project(jobs: Jobs) -> None:
    first, new = jobs.start(1, "START_TRAINING")
    assert (first.state, first.project, new, sent(jobs)) == (State.QUEUED, 1, True, [first.id])
    assert jobs.start(1, "again") == (first, False)
    other, _ = jobs.start(2, "START_TRAINING")
    running = jobs.claim(first.id)
    assert running is not None
    assert (running.state, running.id) == (State.RUNNING, first.id)
    assert jobs.claim(first.id) is None
    second, new = jobs.start(1, "while it runs")
    assert new
    assert jobs.start(1, "once more")[0].id == second.id
    assert sorted(job.id for job in jobs.store.all()) == [first.id, other.id, second.id]


def test_corrections_are_counted_and_merged_and_a_start_does_not_wait(jobs: Jobs) -> None:
    now = time.time()
    assert [jobs.count(1, 1, 3, 60.0), jobs.count(2, 2, 3, 60.0), jobs.count(1, 1, 3, 60.0)] == [None] * 3
    again = Jobs(jobs.folder)  # the server was started anew
    job = again.count(1, 1, 3, 60.0)
    assert job is not None
    assert (job.project, job.why) == (1, "3 corrections")
    assert now + 60 <= job.due <= time.time() + 60
    assert again.count(1, 500, 3, 60.0) == job
    assert again.count(2, 1, 3, 600.0) is not None
    started, new = again.start(1, "START_TRAINING")
    assert (started.id, started.why, new) == (job.id, "START_TRAINING", False)
    assert started.due <= time.time()


def test_projects_that_nobody_knows_take_little_room(jobs: Jobs) -> None:
    with jobs.store.changing() as changes:
        for project in range(1, MAX_PROJECTS + 50):
            changes.count(project, 1)
        assert changes.count(MAX_PROJECTS + 49, 1) == 2
        assert changes.count(1, 1) == 1  # forgotten meanwhile
    for project in range(1, MAX_QUEUED + 1):
        assert jobs.count(project, 1, 1, 60.0) is not None
    with pytest.raises(JobError, match=f"{MAX_QUEUED} jobs wait already"):
        jobs.count(MAX_QUEUED + 1, 1, 1, 60.0)
    assert jobs.start(MAX_QUEUED + 1, "START_TRAINING")[1]  # its sender is known
    assert len(jobs.store.all()) == MAX_QUEUED + 1


def test_old_jobs_and_their_logs_are_forgotten(jobs: Jobs) -> None:
    with jobs.store.changing() as changes:
        for _ in range(KEPT + 5):
            job = changes.add(1, "x", 0.0)
            changes.keep_log(job.id, ["a line"])
            changes.end(job.id, State.DONE)
    jobs.start(1, "START_TRAINING")
    kept = jobs.store.all()
    assert len(kept) == KEPT + 1
    assert (jobs.store.log(kept[-1].id), jobs.store.log(1)) == (["a line"], [])


def test_cancelling(jobs: Jobs) -> None:
    first, _ = jobs.start(1, "x")
    second, _ = jobs.start(2, "x")
    jobs.claim(second.id)
    cancelled, asked = jobs.cancel(first.id), jobs.cancel(second.id)
    assert cancelled is not None
    assert asked is not None
    assert (cancelled.state, cancelled.ended is not None) == (State.CANCELLED, True)
    assert (asked.state, asked.cancelling) == (State.RUNNING, True)
    assert jobs.cancel(first.id) == cancelled
    assert jobs.cancel(99) is None
    assert jobs.claim(first.id) is None


# --- after the death of a worker ---------------------------------------------------------------------------------


def test_what_ran_when_the_worker_died_is_queued_again(jobs: Jobs) -> None:
    first, _ = jobs.start(1, "first")
    jobs.claim(first.id)
    waiting, _ = jobs.start(1, "waiting")
    gone, _ = jobs.start(2, "to be cancelled")
    jobs.claim(gone.id)
    jobs.cancel(gone.id)
    jobs.recover()
    assert states(jobs) == ["queued", "cancelled", "cancelled"]
    resumed, merged = jobs.store.get(first.id), jobs.store.get(waiting.id)
    assert resumed is not None
    assert merged is not None
    assert resumed.resumed == 1
    assert merged.text == f"merged with job {first.id}, which goes on from its checkpoint"
    assert sent(jobs) == [first.id]


def test_a_job_that_kills_its_worker_each_time_is_given_up(jobs: Jobs) -> None:
    job, _ = jobs.start(1, "x")
    for _ in range(MAX_RESUMED + 1):
        assert jobs.claim(job.id) is not None
        jobs.recover()
    found = jobs.store.get(job.id)
    assert found is not None
    assert (found.state, found.resumed) == (State.FAILED, MAX_RESUMED)
    assert "the worker died 11 times" in str(found.error)
    assert sent(jobs) == []


def test_the_queue_is_filled_from_the_records(jobs: Jobs) -> None:
    job, _ = jobs.start(1, "x")
    later = jobs.count(2, 1, 1, 600.0)
    assert later is not None
    jobs.queue.clear()
    jobs.queue.send(12345)
    assert sent(jobs) == [12345]
    jobs.recover()
    assert sent(jobs) == [job.id, later.id]
    jobs.queue.clear()
    jobs.start(1, "its message was lost")
    assert sent(jobs) == [job.id]


def test_a_worker_is_seen_by_its_lock(jobs: Jobs) -> None:
    assert not jobs.worker_runs()
    jobs.start(1, "x")
    with service_lock(jobs.folder):
        assert jobs.worker_runs()
    assert not jobs.worker_runs()


@contextmanager
def service_lock(folder: Path) -> Iterator[None]:
    with worker.durable.locked(folder / service.WORKER_LOCK, 0.0):
        yield


# --- disks and queues that fail ----------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_no_half_job(jobs: Jobs) -> None:
    jobs.start(1, "before")
    with full_disk(), pytest.raises(JobError, match=r"jobs.db cannot be used: "):
        jobs.start(2, "x")
    assert [job.project for job in jobs.store.all()] == [1]
    assert jobs.start(2, "again")[1]


def test_a_job_that_cannot_be_sent_is_not_written_down(jobs: Jobs) -> None:
    first, _ = jobs.start(1, "before")
    (jobs.folder / "queue.db").write_bytes(b"no database" * 1000)
    with pytest.raises(JobError, match=r"the queue, .*queue.db, cannot be used"):
        Jobs(jobs.folder).start(2, "x")
    assert [job.id for job in jobs.store.all()] == [first.id]


def test_records_that_are_none_are_told(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    assert (store.all(), store.get(1), store.log(1)) == ((), None, [])
    store.path.write_bytes(b"no database" * 1000)
    with pytest.raises(JobError, match=r"jobs.db cannot be used: file is not a database"):
        store.all()
    store.path.unlink()
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("pragma user_version = 7")
    with pytest.raises(JobError, match="has layout 7, 1 is expected"):
        store.all()


def test_records_on_a_network_folder_need_no_shared_memory(tmp_path: Path) -> None:
    for network, journal in ((False, "wal"), (True, "delete")):
        JobStore(tmp_path, network).name()
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
            assert connection.execute("pragma journal_mode").fetchone() == (journal,)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_nothing_from_the_queue_is_unpickled(jobs: Jobs, tmp_path: Path) -> None:
    huey = jobs.queue._huey
    huey.storage.enqueue(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(ValueError, match=r"utf-8|JSON|decode"):
        huey.dequeue()
    assert not (tmp_path / "made").exists()


def test_what_must_be_set(tmp_path: Path) -> None:
    assert missing(settings(tmp_path)) is None
    with pytest.raises(JobError, match=r"set RSVP_LABEL_STUDIO_URL, RSVP_LABEL_STUDIO_TOKEN$"):
        jobs_folder(settings(tmp_path, label_studio_url=None, label_studio_token=None))
    with pytest.raises(JobError, match=r"set RSVP_VERSIONS \(a folder for what is learned\)$"):
        jobs_folder(Settings(label_studio_url="http://h", label_studio_token="0123456789abcdef"))


# --- one job in the worker ---------------------------------------------------------------------------------------


def test_records_that_cannot_be_written_for_a_while_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    monkeypatch.setattr("rsvp_backend.jobs.running.RECORDED_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)

    def lesson(_: Settings, project: int, tell: Tell) -> Learned:
        tell(Note("reading", "before"))
        broken.append(broken_store)
        tell(Note("training", "meanwhile", 1, 2))
        return Learned(project)

    broken: list[str] = []
    broken_store = "jobs.db cannot be used: the disk is full"
    one = Worker(settings(tmp_path), lesson)
    changing = one.jobs.store.changing

    def failing() -> Any:
        if broken and len(broken) < 4:
            broken.append(broken_store)
            raise JobError(broken_store)
        return changing()

    monkeypatch.setattr(one.jobs.store, "changing", failing)
    job, _ = one.jobs.start(1, "x")
    one.run_job(job.id)
    found = one.jobs.store.get(job.id)
    assert found is not None
    assert (found.state, found.text) == (State.DONE, "before")
    assert found.result == {
        "project": 1, "version": "v-1", "promoted": True,
        "scores": {"held_out_before": 0.25, "held_out_after": 0.75, "replay_before": None},
    }  # fmt: skip
    assert f"the progress of job {job.id} is not recorded: {broken_store}" in caplog.text
    assert "tried again in" in caplog.text


def test_the_log_keeps_the_last_lines_of_this_package(tmp_path: Path) -> None:
    def lesson(_: Settings, project: int, tell: Tell) -> Learned:
        for number in range(LOG_LINES + 10):
            logging.getLogger("rsvp_backend.x").warning("line %d\nof two", number)
        logging.getLogger("elsewhere").warning("not ours")
        return Learned(project)

    one = Worker(settings(tmp_path), lesson)
    job, _ = one.jobs.start(1, "x")
    one.run_job(job.id)
    lines = one.jobs.store.log(job.id)
    assert len(lines) == LOG_LINES
    assert any(line.endswith(f"WARNING line {LOG_LINES + 9} of two") for line in lines)
    assert not any("not ours" in line for line in lines)


# --- pages -------------------------------------------------------------------------------------------------------


def test_every_text_of_a_job_is_escaped() -> None:
    lesson = {"version": EVIL, "reasons": [EVIL], "notes": [EVIL], "reading": EVIL, "scores": {}, "corrections": EVIL}
    shown = replace(JOB, state=State.RUNNING, why=EVIL, stage=EVIL, text=EVIL, error=EVIL, result=lesson)
    for html in (page.all_jobs([shown], True, EVIL), page.one_job(shown, [EVIL], False)):
        assert EVIL not in html
        assert html.count("&lt;script&gt;") >= 9
        assert html.count("<script") == html.count('<script src="') == 1


def test_what_the_pages_show() -> None:
    running = replace(JOB, state=State.RUNNING, stage="training", text="loss 0.2", done=30, total=120, resumed=1)
    done = replace(
        JOB, id=4, state=State.DONE, started=1e9, ended=1e9 + 75,
        result={
            "version": "demo-1", "promoted": True, "corrections": 20, "reasons": ["better by 0.1 to 0.3"],
            "scores": {"held_out_before": 0.412, "held_out_after": 0.781, "replay_before": None, "replay_after": 0.9},
        },
    )  # fmt: skip
    html = page.all_jobs([done, running], False, None)
    for text in (
        '<progress value="30" max="120" aria-label="Job 3: training">', "30 of 120", "loss 0.2", "resumed once",
        '<td class="number">0.412</td><td class="number">0.781</td>',
        ">+0.369<",
        "better by 0.1 to 0.3", "<b>demo-1</b> is promoted, from 20 corrections", "took 1 min 15 s", "No worker runs",
        'data-post="jobs/3/cancel"', 'href="jobs/4"',
    ):  # fmt: skip
        assert text in html
    assert "jobs/4/cancel" not in html
    assert "earlier data" not in html  # nothing was measured before
    assert 'data-post="3/cancel"' in page.one_job(running, [], True)
    assert "Start a lesson" not in page.all_jobs([], False, "nothing is learned here: set RSVP_VERSIONS")


@pytest.mark.parametrize("layout", [None, 1])
def test_what_was_measured_is_kept(tmp_path: Path, layout: int | None) -> None:
    """Also in records of the same layout from before there were any."""
    one = Jobs(tmp_path)
    job, _ = one.start(1, "x")
    if layout is not None:
        with closing(sqlite3.connect(one.store.path)) as connection:
            connection.execute("drop table curves")
            connection.commit()
    assert one.store.curve(job.id) == ()
    assert one.claim(job.id)
    running = Running(job, one.store, lambda: False, [])
    for step in range(1, 4 * CURVE_POINTS):
        running._recorded_s = float("-inf")
        running.tell(Note("training", "", step, 1000, {"loss": 1 / step, "held_out": float("nan")}))
    curve = one.store.curve(job.id)
    assert CURVE_POINTS // 2 <= len(curve) <= CURVE_POINTS + 1
    assert curve[-1] == (4 * CURVE_POINTS - 1, 1 / (4 * CURVE_POINTS - 1), None)
    resumed = Running(job, one.store, lambda: False, [], curve)
    resumed.tell(Note("training", "", 9, 1000, {"loss": 0.5, "held_out": 0.25}))
    assert one.store.curve(job.id)[-1] == (9, 0.5, 0.25)
    assert [step for step, _, _ in one.store.curve(job.id)] == sorted({step for step, _, _ in one.store.curve(job.id)})


def test_values_for_json() -> None:
    assert finite({"a": [float("nan"), 1.5, (float("inf"),)], 2: "x"}) == {"a": [None, 1.5, [None]], "2": "x"}
    assert one_line("a\n\tb\x00c  d") == "a b c d"
    assert one_line("x" * 600).endswith("x…")
    assert len(one_line("x" * 600)) == 500

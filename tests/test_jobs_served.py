"""Jobs over HTTP: webhooks start them within Label Studio's second, /jobs shows and cancels them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from job_lessons import until

from rsvp_backend.engine import Engine
from rsvp_backend.jobs import intake
from rsvp_backend.jobs.intake import MAX_WAITING, Intake
from rsvp_backend.jobs.job import State
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

DATA = Path(__file__).parent / "data" / "label_studio"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ACCOUNT = {"label_studio_url": "http://127.0.0.1:9", "label_studio_token": "0123456789abcdef"}


def captured(name: str) -> dict[str, Any]:
    """The body of a webhook that Label Studio sent."""
    body: dict[str, Any] = json.loads((DATA / f"webhook_{name}.json").read_text())["body"]
    return body


CREATED, START = captured("annotation_created"), captured("start_training")
SKIPPED = CREATED | {"annotation": {"id": 43, "result": [], "was_cancelled": True}}


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings(versions=tmp_path / "versions", **(ACCOUNT | more))


@pytest.fixture(autouse=True)
def _patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's slow disk changes no answer, but where the answer to a slow one is looked at."""
    if "impatient" not in request.fixturenames:
        monkeypatch.setattr(intake, "ANSWER_S", 30.0)


@pytest.fixture
def impatient() -> None:
    """For tests of what is answered before the disk has."""


@contextmanager
def running(settings: Settings) -> Iterator[TestClient]:
    engine = Engine(fake_rsvp, ImageFetcher("http://127.0.0.1:9"))
    with TestClient(create_app(settings, engine)) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with running(settings(tmp_path)) as client:
        yield client


def listed(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/jobs").json()["jobs"]
    return found


@contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    """Another process writes into the records, and does not end."""
    connection = sqlite3.connect(tmp_path / "versions-work" / "jobs.db", isolation_level=None)
    connection.execute("begin exclusive")
    try:
        yield
    finally:
        connection.execute("rollback")
        connection.close()


# --- webhooks ----------------------------------------------------------------------------------------------------


def test_start_training_queues_one_job(client: TestClient) -> None:
    answer = client.post("/webhook", json=START).json()
    assert (answer["status"], answer["action"], answer["job"]) == ("accepted", "START_TRAINING", 1)
    assert answer["detail"] == "job 1 is queued: see /jobs. No worker runs: start `rsvp-backend worker`"
    assert "already" in client.post("/webhook", json=START).json()["detail"]
    (job,) = listed(client)
    assert (job["id"], job["project"], job["state"], job["why"]) == (1, 17, "queued", "START_TRAINING")


def test_corrections_start_no_job_by_default(client: TestClient) -> None:
    answer = client.post("/webhook", json=CREATED)
    assert (answer.status_code, answer.json()["detail"]) == (
        200,
        "noted; RSVP_TRAIN_EVERY is 0: jobs are started by hand",
    )
    assert listed(client) == []


def test_every_so_many_corrections_make_a_job(tmp_path: Path) -> None:
    updated = CREATED | {"action": "ANNOTATION_UPDATED"}
    bulk = CREATED | {"action": "ANNOTATIONS_CREATED", "annotation": [CREATED["annotation"]] * 3}
    with running(settings(tmp_path, train_every=6)) as client:
        for event in (CREATED, SKIPPED, updated, captured("annotations_deleted")):
            assert "job" not in client.post("/webhook", json=event).json()
    with running(settings(tmp_path, train_every=6)) as client:  # started anew
        assert "job" not in client.post("/webhook", json=bulk).json()
        assert client.post("/webhook", json=CREATED).json()["job"] == 1
        (job,) = listed(client)
        assert (job["why"], job["due"] > job["created"]) == ("6 corrections", True)
        client.post("/webhook", json=START)
        (started,) = listed(client)
        assert (started["id"], started["why"], started["due"] < job["due"]) == (1, "START_TRAINING", True)


def test_a_burst_of_events_makes_one_job(tmp_path: Path) -> None:
    with running(settings(tmp_path, train_every=5)) as client, ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: client.post("/webhook", json=CREATED), range(200)))
        assert {reply.status_code for reply in replies} == {200}
        (job,) = listed(client)
        assert (job["state"], job["project"]) == ("queued", 17)


@pytest.mark.parametrize("project", [None, 17, {}, {"id": "17"}, {"id": True}, {"id": 0}, {"id": -3}, {"id": 2**70}])
def test_events_without_a_project_leave_nothing(tmp_path: Path, project: object) -> None:
    with running(settings(tmp_path, train_every=1)) as client:
        for action in ("START_TRAINING", "ANNOTATION_CREATED"):
            reply = client.post("/webhook", json=CREATED | {"action": action, "project": project})
            assert (reply.status_code, reply.json()["detail"]) == (200, "the event names no project")
    assert not (tmp_path / "versions-work").exists()


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with running(Settings(train_every=1)) as client:
        for event in (START, CREATED):
            detail = client.post("/webhook", json=event).json()["detail"]
            assert "set RSVP_VERSIONS (a folder for what is learned), RSVP_LABEL_STUDIO_URL, RSVP_LABEL" in detail
        assert client.get("/jobs").json()["detail"] == detail
        assert "nothing is learned here" in client.get("/jobs", headers=PAGE).text
        reply = client.post("/jobs", json={"project": 1})
        assert (reply.status_code, reply.json()["detail"]) == (409, detail)
        assert client.get("/jobs/1").status_code == 404


@pytest.mark.usefixtures("impatient")
def test_a_locked_queue_holds_up_no_answer(client: TestClient, tmp_path: Path) -> None:
    client.post("/webhook", json=START)
    second = START | {"project": {"id": 18}}
    with locked(tmp_path):
        reply = client.post("/webhook", json=second)  # answered while it is locked
        assert (reply.status_code, reply.json()["status"]) == (202, "accepted")
        assert "slow" in reply.json()["detail"]
    until(lambda: [job["project"] for job in listed(client)] == [18, 17])


@pytest.mark.usefixtures("impatient")
def test_events_that_wait_for_the_disk_are_bounded(tmp_path: Path) -> None:
    taken = Intake(settings(tmp_path))
    assert taken.jobs is not None
    taken.jobs.start(1, "the folder is made")

    async def burst() -> list[tuple[int, Any]]:
        return await asyncio.gather(*(taken.answer(START) for _ in range(MAX_WAITING + 20)))

    with locked(tmp_path):
        answers = asyncio.run(burst())
        taken.close()
    assert [status for status, _ in answers] == [202] * MAX_WAITING + [503] * 20
    assert "this one is not taken" in answers[-1][1]["detail"]


def test_a_broken_queue_is_told_and_logged(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "versions-work").mkdir()
    (tmp_path / "versions-work" / "jobs.db").write_bytes(b"no database" * 1000)
    reply = client.post("/webhook", json=START)
    assert (reply.status_code, reply.json()["status"]) == (503, "refused")
    assert "jobs.db cannot be used: file is not a database" in reply.json()["detail"]
    assert reply.json()["detail"] in caplog.text
    for path in ("/jobs", "/jobs/1"):
        assert client.get(path).status_code == 503
    assert client.get("/health").status_code == 200


# --- /jobs -------------------------------------------------------------------------------------------------------


def test_jobs_are_started_shown_and_cancelled(client: TestClient, tmp_path: Path) -> None:
    started = client.post("/jobs", json={"project": 5})
    assert (started.status_code, started.json()["job"]) == (200, 1)
    answer = client.get("/jobs/1").json()
    assert (answer["state"], answer["why"], answer["log"], answer["ended"]) == ("queued", "started by hand", [], None)
    cancelled = client.post("/jobs/1/cancel", json={})
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert client.post("/jobs/1/cancel", json={}).status_code == 200
    jobs = Jobs(tmp_path / "versions-work")
    number = client.post("/jobs", json={"project": 5}).json()["job"]
    jobs.claim(number)
    assert client.post(f"/jobs/{number}/cancel", json={}).json()["cancelling"] is True
    with jobs.store.changing() as changes:
        changes.end(number, State.DONE, result={})
    refused = client.post(f"/jobs/{number}/cancel", json={})
    assert (refused.status_code, refused.json()["detail"]) == (409, f"job {number} is done already")
    assert client.get("/jobs").json()["worker"] is False


@pytest.mark.parametrize("number", ["99", "0", str(2**70)])
def test_unknown_jobs(client: TestClient, number: str) -> None:
    assert client.get(f"/jobs/{number}").status_code == 404
    assert client.post(f"/jobs/{number}/cancel", json={}).status_code == 404


@pytest.mark.parametrize("body", [{}, {"project": "1"}, {"project": 0}, {"project": 2**40}, {"project": True}, []])
def test_bad_projects_are_refused(client: TestClient, body: object) -> None:
    assert client.post("/jobs", json=body).status_code == 422
    assert listed(client) == []


def test_browsers_get_pages(client: TestClient) -> None:
    client.post("/jobs", json={"project": 5})
    for path in ("/jobs", "/jobs/1"):
        reply = client.get(path, headers=PAGE)
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "Job 1, project 5" in reply.text


def test_posts_of_other_sites_are_refused(client: TestClient) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        for path in ("/jobs", "/jobs/1/cancel"):
            assert client.post(path, content='{"project": 1}', headers=headers).status_code == 415
    for site in ("cross-site", "same-site"):
        for path in ("/jobs", "/jobs/1/cancel"):
            assert client.post(path, json={"project": 1}, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert listed(client) == []
    own = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json; charset=utf-8"}
    assert client.post("/jobs", content='{"project": 1}', headers=own).status_code == 200


def test_jobs_need_the_password(tmp_path: Path) -> None:
    with running(settings(tmp_path, basic_auth_user="me", basic_auth_password="secret")) as client:
        assert client.post("/webhook", json=START).status_code == 401
        for path in ("/jobs", "/jobs/1"):
            assert client.get(path).status_code == 401
        for path in ("/jobs", "/jobs/1/cancel"):
            assert client.post(path, json={"project": 1}).status_code == 401
        assert client.get("/jobs", auth=("me", "secret")).json()["jobs"] == []
        assert client.post("/jobs", json={"project": 1}, auth=("me", "secret")).status_code == 200

"""What did not fit into a request: kept on disk once, answered when there is time, pushed, and tidied up after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_models import FakeReasoner, fake_rsvp
from fastapi.testclient import TestClient
from ls_http import Reply, Seen, Server, json_reply, serving
from PIL import Image
from test_server import CONFIG, png

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.server import create_app
from rsvp_backend.serving import desk, request, settling
from rsvp_backend.serving.answering import Batch
from rsvp_backend.serving.backlog import LACKING, SWITCHED_OFF, Backlog, BacklogError, Standing
from rsvp_backend.serving.crew import Crew
from rsvp_backend.settings import Settings
from rsvp_backend.training import durable
from rsvp_backend.types import Deadline

VERSION = fake_rsvp().version
TOKEN = "a-legacy-token"


class LabelStudio:
    """Tasks and predictions behind the few routes that are called."""

    def __init__(self, server: Server, tasks: int) -> None:
        self.server = server
        self.down = False
        self.tasks = {n: {"image": f"{server.url}/bus.jpg", "instruction": f"the cup {n}"} for n in range(1, tasks + 1)}
        self.predictions: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        picture = png(Image.new("RGB", (90, 72), "gray"))
        server.routes["/bus.jpg"] = lambda _: (200, {}, picture)
        server.routes["/api/tasks"] = self._up(self._task)
        server.routes["/api/predictions/"] = server.routes["/api/predictions"] = self._up(self._predictions)
        server.routes["/api/current-user/whoami"] = self._up(lambda _: json_reply({"id": 1}))
        for number in range(1, 400):
            server.routes[f"/api/predictions/{number}/"] = self._up(self._delete)

    def save(self, task: int, version: str, result: list[Any] | None = None) -> None:
        with self._lock:
            number = len(self.server.seen) + len(self.predictions) + 1
            while number in self.predictions:
                number += 1
            self.predictions[number] = {
                "id": number, "task": task, "model_version": version, "result": result or [], "score": None
            }  # fmt: skip

    def versions(self, task: int) -> list[str]:
        with self._lock:
            return [one["model_version"] for one in self.predictions.values() if one["task"] == task]

    def _up(self, route: Callable[[Seen], Reply]) -> Callable[[Seen], Reply]:
        return lambda request: json_reply({"detail": "down"}, 502) if self.down else route(request)

    def _task(self, request: Seen) -> Reply:
        query = json.loads(parse_qs(urlsplit(request.path).query)["query"][0])
        number = query["filters"]["items"][0]["value"] + 1
        with self._lock:
            held = [one for one in self.predictions.values() if one["task"] == number]
        found = [{"id": number, "data": self.tasks[number], "predictions": held}] if number in self.tasks else []
        return json_reply({"tasks": found, "total": len(found)})

    def _predictions(self, request: Seen) -> Reply:
        if request.method == "POST":
            body: Any = request.json
            self.save(body["task"], body["model_version"], body["result"])
            return json_reply({"id": 1}, 201)
        task = int(parse_qs(urlsplit(request.path).query)["task"][0])
        with self._lock:
            return json_reply([one for one in self.predictions.values() if one["task"] == task])

    def _delete(self, request: Seen) -> Reply:
        (number,) = re.findall(r"\d+", request.path)
        with self._lock:
            return (204, {}, b"") if self.predictions.pop(int(number), None) else json_reply({}, 404)


@pytest.fixture
def studio() -> Iterator[LabelStudio]:
    with serving() as server:
        yield LabelStudio(server, 12)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes are fractions of a second here."""
    monkeypatch.setattr(request, "GRACE_S", 0.1)
    monkeypatch.setattr(settling, "LOOKS_S", (0.2, 0.8))
    monkeypatch.setattr(settling, "RETRIES_S", (0.05, 0.05))
    monkeypatch.setattr(settling, "AWAY_S", (0.05,))
    monkeypatch.setattr(settling, "POLL_S", 0.02)


@contextmanager
def served(
    studio: LabelStudio, folder: Path, reasoner: FakeReasoner | None = None, **settings: Any
) -> Iterator[TestClient]:
    about = {"label_studio_url": studio.server.url, "label_studio_token": TOKEN, "backlog": folder, **settings}
    engine = Engine(lambda: fake_rsvp(reasoner), ImageFetcher(studio.server.url, None, ImageLimits(timeout_s=10.0)))
    with TestClient(create_app(Settings(**about), engine)) as client:
        yield client


def asked(studio: LabelStudio, **more: Any) -> dict[str, Any]:
    tasks = [{"id": number, "data": data} for number, data in studio.tasks.items()]
    return {"tasks": tasks, "label_config": CONFIG, "project": "7.1", "params": {"context": None}, **more}


def left_waiting(studio: LabelStudio, folder: Path) -> None:
    """A server that ends while all tasks wait."""
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    with served(studio, folder, reasoner, predict_timeout_s=0.1) as client:
        client.post("/predict", json=asked(studio))
        assert client.get("/backlog").json()["waiting"] == 12
    reasoner.gate.set()


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def is_empty(client: TestClient) -> bool:
    shown = client.get("/backlog").json()
    return bool(shown["waiting"] + shown["stored"] == 0)


# --- through the server ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_pushed_later_once_and_nothing_empty_stays(studio: LabelStudio, tmp_path: Path) -> None:
    """Label Studio saves the empty ones after the answer, and for some tasks only after theirs was pushed."""
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    with served(studio, tmp_path, reasoner, predict_timeout_s=0.2) as client:
        results = client.post("/predict", json=asked(studio)).json()["results"]
        assert [result["model_version"] for result in results] == [VERSION + RETRY_SUFFIX] * 12
        assert client.get("/backlog").json()["waiting"] == 12
        for number in range(1, 7):
            studio.save(number, VERSION + RETRY_SUFFIX)
        reasoner.gate.set()
        until(lambda: all(VERSION in studio.versions(number) for number in studio.tasks))
        for number in range(7, 13):
            studio.save(number, VERSION + RETRY_SUFFIX)
        until(lambda: is_empty(client))
        text = client.get("/metrics").text
    assert [studio.versions(number) for number in studio.tasks] == [[VERSION]] * 12
    assert "rsvp_backlog_pushed_total 12.0" in text
    assert 'rsvp_backlog_tasks{state="waiting"} 0.0' in text


def test_the_reason_says_what_will_come_of_the_task(studio: LabelStudio, tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    expected = {
        "will be answered later, see /backlog": {},
        LACKING: {"label_studio_token": None},
        SWITCHED_OFF: {"backlog_tasks": 0},
        "4 will be answered later, see /backlog; there is no room for more": {"backlog_tasks": 4},
    }
    for text, settings in expected.items():
        with served(studio, tmp_path / str(len(text)), reasoner, predict_timeout_s=0.1, **settings) as client:
            client.post("/predict", json=asked(studio))
            details = [trace["detail"] for trace in client.get("/traces").json()["traces"]]
            assert any(text in detail for detail in details), details
            if text in (LACKING, SWITCHED_OFF):
                assert client.get("/backlog").json()["detail"] == text
    reasoner.gate.set()


def test_interactive_calls_leave_nothing_behind(studio: LabelStudio, tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    prompt = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["the ball"]}}
    with served(studio, tmp_path, reasoner, predict_timeout_s=0.1) as client:
        body = asked(studio, params={"context": {"result": [prompt]}})
        client.post("/predict", json={**body, "tasks": body["tasks"][:1]})
        assert is_empty(client)
        reasoner.gate.set()
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_is_tried_again_and_then_listed(studio: LabelStudio, tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    studio.tasks = {
        1: {"image": f"{studio.server.url}/bus.jpg", "instruction": "the cup"},
        2: {"image": f"{studio.server.url}/bus.jpg", "instruction": "the broken cup"},
        3: {"image": f"{studio.server.url}/bus.jpg", "instruction": "the ball"},
        4: {"image": f"{studio.server.url}/bus.jpg", "instruction": "the spoon"},
    }
    with served(studio, tmp_path, reasoner, predict_timeout_s=0.1) as client:
        body = asked(studio)
        studio.tasks[1] = {**studio.tasks[1], "image": f"{studio.server.url}/missing.png"}  # edited after it was asked
        studio.tasks[3] = {"image": f"{studio.server.url}/bus.jpg"}
        del studio.tasks[4]
        client.post("/predict", json=body)
        reasoner.gate.set()
        until(lambda: client.get("/backlog").json()["failed"] == 3)
        shown = client.get("/backlog").json()
    listed = {one["task"]: (one["tries"], one["why"]) for one in shown["tasks"]}
    assert "404" in listed[1][1]
    assert "cannot be reached" in listed[2][1]
    assert "no instruction" in listed[3][1]
    assert [listed[number][0] for number in (1, 2, 3)] == [3, 3, 1]
    assert not studio.predictions


def test_who_asks_again_meanwhile_gets_no_task_twice(
    studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio saves its answer after the backlog has pushed the same, or before: one of them stays."""
    monkeypatch.setattr(desk, "SAVED_S", 0.3)
    left_waiting(studio, tmp_path)
    with served(studio, tmp_path) as client:
        results = client.post("/predict", json=asked(studio)).json()["results"]
        assert {result["model_version"] for result in results} == {VERSION}
        for number, result in enumerate(results, 1):
            studio.save(number, VERSION, result["result"])
        until(lambda: is_empty(client))
    assert [studio.versions(number) for number in studio.tasks] == [[VERSION]] * 12


def test_a_restart_goes_on_where_the_last_server_was(studio: LabelStudio, tmp_path: Path) -> None:
    left_waiting(studio, tmp_path)
    with served(studio, tmp_path) as client:
        until(lambda: all(studio.versions(number) == [VERSION] for number in studio.tasks))
        until(lambda: is_empty(client))


def test_another_server_on_the_same_file_waits(studio: LabelStudio, tmp_path: Path) -> None:
    left_waiting(studio, tmp_path)
    (file,) = tmp_path.glob("*.db")
    with durable.locked(file.with_suffix(".lock"), 0), served(studio, tmp_path) as client:
        until(lambda: "another server settles" in str(client.get("/backlog").json()["detail"]))
        assert client.get("/backlog").json()["waiting"] == 12
    assert not studio.predictions


def test_label_studio_away_costs_no_task_its_tries(studio: LabelStudio, tmp_path: Path) -> None:
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    studio.down = True
    with served(studio, tmp_path, reasoner, predict_timeout_s=0.1) as client:
        client.post("/predict", json=asked(studio))
        reasoner.gate.set()
        until(lambda: "502" in str(client.get("/backlog").json()["detail"]))
        time.sleep(0.4)  # many more tries than a task has
        studio.down = False
        until(lambda: all(studio.versions(number) == [VERSION] for number in studio.tasks))
        until(lambda: is_empty(client))
        assert client.get("/backlog").json()["detail"] is None


@pytest.mark.parametrize("end", ["cut", "stopped"])
def test_a_request_that_nobody_receives_loses_nothing(studio: LabelStudio, tmp_path: Path, end: str) -> None:
    """Label Studio saves nothing of it: what was answered already is pushed as well."""
    reasoner = FakeReasoner()
    backlog, crew = Backlog(tmp_path / "backlog.db"), Crew()
    engine = Engine(lambda: fake_rsvp(reasoner), ImageFetcher(studio.server.url))
    taken = desk.Desk(engine, crew, desk.Later(backlog), limit=4)

    async def gone() -> bool:
        return end == "cut"

    async def ask() -> None:
        batch = Batch(asked(studio)["tasks"], CONFIG, "7.1")
        answering = asyncio.ensure_future(taken.answer(batch, Deadline.after(20), gone))
        if end == "stopped":
            reasoner.gate.clear()
            while not reasoner.asked:
                await asyncio.sleep(0.01)
            answering.cancel()
        await answering

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(ask())
    reasoner.gate.set()
    crew.close()
    assert [entry.key for entry in backlog.listed(Standing.WAITING)] == [(7, number) for number in range(1, 13)]
    assert not taken.is_asked((7, 1))


# --- the file ----------------------------------------------------------------------------------------------------


def test_a_task_stands_in_it_once_and_there_is_an_end_to_it(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "deep" / "backlog.db", max_tasks=5)
    assert backlog.due(10) == backlog.listed(Standing.FAILED) == []
    assert not backlog.path.exists()
    assert backlog.add(1, [1, 2, 2, 3], "<A/>", None) == [1, 2, 3]
    assert backlog.add(1, [3, 4, 5, 6], "<B/>", "the cup") == [3, 4, 5]
    assert backlog.add(2, [1], "<B/>", None) == []
    found = {entry.task: (entry.label_config, entry.default_instruction) for entry in backlog.due(10)}
    assert found == dict.fromkeys((1, 2), ("<A/>", None)) | dict.fromkeys((3, 4, 5), ("<B/>", "the cup"))
    backlog.remove(backlog.due(1)[0])
    assert backlog.add(2, [1], "<B/>", None) == [1]


def test_what_was_asked_for_anew_is_not_settled_by_an_older_try(tmp_path: Path) -> None:
    backlog = Backlog(tmp_path / "backlog.db")
    backlog.add(1, [1], "<A/>", None)
    (old,) = backlog.due(1)
    backlog.later(old, Standing.STORED, time.time() + 100)
    assert backlog.due(1) == []
    backlog.add(1, [1], "<A/>", None)
    for settle in (backlog.remove, lambda entry: backlog.fail(entry, "late")):
        settle(old)
        assert backlog.counts() == {Standing.WAITING: 1, Standing.STORED: 0, Standing.FAILED: 0}
    (new,) = backlog.due(1)
    backlog.fail(new, "no image")
    assert [(entry.why, entry.tries) for entry in backlog.listed(Standing.FAILED)] == [("no image", 1)]
    assert backlog.add(1, [1], "<A/>", None) == [1]
    assert backlog.due(1)[0].tries == 0


def test_what_was_taken_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rsvp_backend.serving.backlog import Backlog\n"
        "backlog = Backlog(Path(sys.argv[1]))\n"
        "for task in range(1, 10**6): print(*backlog.add(3, [task], '<A/>', None), flush=True)\n"
    )
    file = tmp_path / "backlog.db"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        taken = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
        taken += [int(line) for line in process.stdout if line.endswith("\n")]
    backlog = Backlog(file)
    held = [entry.task for entry in backlog.listed(Standing.WAITING, 10**6)]
    assert held[: len(taken)] == taken
    assert len(held) <= len(taken) + 1


def test_a_file_that_cannot_be_used_spoils_no_answer(studio: LabelStudio, tmp_path: Path) -> None:
    left_waiting(studio, tmp_path)
    (file,) = tmp_path.glob("*.db")
    with sqlite3.connect(file) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(BacklogError, match="layout 99"):
        Backlog(file).counts()
    with served(studio, tmp_path) as client:
        assert client.get("/backlog").status_code == 503
        results = client.post("/predict", json=asked(studio)).json()["results"]
        assert {result["model_version"] for result in results} == {VERSION}
        assert "rsvp_backlog_pushed_total 0.0" in client.get("/metrics").text

"""Label Studio stopped, started again, slow and full: the backend goes on by itself, and nothing is lost or doubled."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from recovery_proxy import WRITES, Fault, Proxy, proxying
from uvicorn_server import listening

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.project import demo_tasks
from rsvp_backend.jobs import worker
from rsvp_backend.jobs.job import Job, State
from rsvp_backend.jobs.running import Taught, Tell
from rsvp_backend.jobs.worker import Worker
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.learning import learn
from rsvp_backend.lessons import Told
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.serving import settling
from rsvp_backend.settings import Settings, load_settings
from rsvp_backend.training.finetune_config import FinetuneConfig
from rsvp_backend.types import Box, Instance, Outcome, Regions, Trace

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
XML = default_label_config(["Object", "lamp"])
IMAGES, TASKS, CORRECTED = 6, 24, 6
WAIT_S = 240.0


class Studio:
    """A real Label Studio, behind a proxy whose address stays the same wherever it is started again."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.child, self.url, self.account = label_studio.start(HOME, data / "label-studio", say)
        self.token = create_personal_token(self.url, self.account.email, self.account.password, replace=True)

    def kill(self) -> None:
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.stop()

    def start(self, proxy: Proxy) -> None:
        """With the data that it left."""
        self.child, self.url, _ = label_studio.start(HOME, self.data / "label-studio", say)
        proxy.upstream = self.url


@dataclass(frozen=True)
class Ward:
    studio: Studio
    proxy: Proxy
    client: LabelStudioClient
    images: list[tuple[Path, str]]

    def settings(self, **more: Any) -> Settings:
        return load_settings(label_studio_url=self.proxy.url, label_studio_token=self.studio.token, **more)

    def held(self, project: int) -> dict[int, list[str]]:
        tasks = self.client.tasks(project)
        return {int(task["id"]): [str(one["model_version"]) for one in task["predictions"]] for task in tasks}

    def ends_with_one_each(self, project: int, version: str) -> None:
        until_s = time.monotonic() + WAIT_S
        while [*(held := self.held(project)).values()] != [[version]] * TASKS:
            assert time.monotonic() < until_s, held
            time.sleep(0.3)


def say(line: str) -> None:
    print(line)  # noqa: T201


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    label_studio.prepare(HOME, say)
    data = tmp_path_factory.mktemp("recovery")
    studio = Studio(data)
    try:
        with proxying(studio.url) as proxy, LabelStudioClient(proxy.url, studio.token, timeout_s=120) as client:
            yield Ward(studio, proxy, client, demo_tasks(data / "images", IMAGES))
    finally:
        studio.child.stop()


def project_of(ward: Ward) -> int:
    """`TASKS` tasks about a few images, without a backend."""
    project = int(ward.client.create_project("recovery", XML)["id"])
    uris = ward.client.upload_files(project, [path for path, _ in ward.images])
    asked = zip(itertools.cycle(uris), itertools.cycle(("mug", "key", "ball", "lamp", "book")), range(TASKS))
    ward.client.import_tasks(project, [{"data": {"image": uri, "instruction": f"the {x}"}} for uri, x, _ in asked])
    return project


@contextmanager
def prelabelling(ward: Ward, project: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    env = dict(os.environ) | {
        "RSVP_LABEL_STUDIO_URL": ward.proxy.url, "RSVP_LABEL_STUDIO_TOKEN": ward.studio.token, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "rsvp_backend", "prelabel", "--project", str(project), "--json"]
    process = subprocess.Popen(
        [*command, "--work-dir", str(folder)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    output, complaint = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, complaint
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report, complaint


def test_prelabel_outlives_a_label_studio_that_is_killed(ward: Ward, tmp_path: Path) -> None:
    """Half of the images come only after it, so that it is the middle of the run."""
    project, killed = project_of(ward), threading.Event()
    late = tuple(path.name for path, _ in ward.images[IMAGES // 2 :])

    def fault(_: str, path: str) -> Fault | None:
        if path.endswith(late):
            killed.wait(WAIT_S)
        return None

    ward.proxy.fault = fault
    try:
        with prelabelling(ward, project, tmp_path) as process:
            while not any(ward.held(project).values()):
                assert process.poll() is None
            ward.studio.kill()
            killed.set()
            time.sleep(2)
            ward.studio.start(ward.proxy)
            report, complaint = ended(process)
    finally:
        ward.proxy.fault = lambda *_: None
    assert (report["tasks"], report["failed"], report["stopped"]) == (TASKS, 0, "")
    assert complaint.count("Label Studio is waited for") <= 2
    assert "Label Studio answers again" in complaint
    ward.ends_with_one_each(project, report["version"])


def test_prelabel_outlives_a_full_disk_lost_answers_and_slowness(ward: Ward, tmp_path: Path) -> None:
    """Writes are refused for a while, then two that were done get no answer; and all of it comes late."""
    project, writes = project_of(ward), itertools.count()

    def fault(method: str, path: str) -> Fault | None:
        if method not in WRITES or "predictions" not in path:
            return Fault(delay_s=0.1)
        number = next(writes)
        return Fault(status=(500, 507)[number % 2]) if number < 2 else Fault(cut=True) if number < 4 else None

    ward.proxy.fault = fault
    try:
        with prelabelling(ward, project, tmp_path) as process:
            report, complaint = ended(process)
    finally:
        ward.proxy.fault = lambda *_: None
    assert next(writes) >= 3  # both refusals were met, and a cut at least
    assert report["failed"] == 0, report
    assert complaint.count("database or disk is full") <= 4
    ward.ends_with_one_each(project, report["version"])


def test_what_is_answered_later_outlives_it_too(ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "AWAY_S", (0.5,))
    monkeypatch.setattr(settling, "LOOKS_S", (1.0, 3.0, 6.0))
    settings = ward.settings(predict_timeout_s=0.3, backlog=tmp_path / "backlog")
    engine = make_engine(settings)
    with listening(create_app(settings, engine)) as port:
        url = f"http://127.0.0.1:{port}"
        ready(url)
        version = engine.ready().version
        project = project_of(ward)
        ward.client.create_ml_backend(project, url, version)
        ward.client.retrieve_predictions(project)
        assert get(url, "backlog")["waiting"] > 0
        ward.studio.kill()
        until_s = time.monotonic() + WAIT_S
        while "Label Studio" not in str(get(url, "backlog")["detail"]):  # told where people look
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert get(url, "health")["status"] == "UP"
        ward.studio.start(ward.proxy)
        ward.ends_with_one_each(project, version)
        while get(url, "backlog")["waiting"] or get(url, "backlog")["detail"]:
            assert time.monotonic() < until_s
            time.sleep(0.2)
        assert get(url, "backlog")["failed"] == 0


def ready(url: str) -> None:
    until_s = time.monotonic() + WAIT_S
    while get(url, "health")["state"] != "ready":
        assert time.monotonic() < until_s
        time.sleep(0.1)


def get(url: str, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/{path}", trust_env=False, timeout=30).json()
    return answer


def test_a_lesson_waits_for_label_studio_and_learns_from_all(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while the lesson fetches its images: none of them counts as gone."""
    monkeypatch.setattr(worker, "AWAY_S", (1.0, 2.0, 5.0, 10.0, 20.0, 40.0))
    project = project_of(ward)
    submit(ward, project)
    settings = ward.settings(versions=tmp_path / "versions", replay="none")
    back = Killed(ward)

    def lesson(settings: Settings, project: int, tell: Tell) -> Taught:
        config = FinetuneConfig(steps=2, evaluate_every=2, variants=0, device="cpu", cache=tmp_path / "cache")
        return learn(settings, project, back.at("images", tell), config=config, promote=False)

    at_work = Worker(settings, lesson)
    job, _ = at_work.jobs.start(project, "test")
    at_work.run_job(job.id)
    back.thread.join(WAIT_S)
    found = at_work.jobs.store.get(job.id)
    assert isinstance(found, Job)
    assert (found.state, found.error) == (State.DONE, None)
    assert found.result is not None
    assert found.result["corrections"] == CORRECTED
    assert found.result["notes"] == []
    log = "\n".join(at_work.jobs.store.log(job.id) or [])
    assert "waits" in log
    assert "left out" not in log


class Killed:
    """Kills Label Studio at a stage of the lesson, and starts it again beside the lesson that waits."""

    def __init__(self, ward: Ward) -> None:
        self.ward = ward
        self.stages: list[str] = []
        self.thread = threading.Thread(target=self._start)

    def at(self, stage: str, tell: Tell) -> Callable[[Told], None]:
        def told(one: Told) -> None:
            tell(one)
            if one.stage == stage and stage not in self.stages:
                self.ward.studio.kill()
                self.thread.start()
            self.stages.append(one.stage)

        return told

    def _start(self) -> None:
        time.sleep(2)
        self.ward.studio.start(self.ward.proxy)


def submit(ward: Ward, project: int) -> None:
    """`CORRECTED` predictions, accepted as they are."""
    tasks = list(itertools.islice(ward.client.tasks(project), CORRECTED))
    for task, (path, _) in zip(tasks, itertools.cycle(ward.images), strict=False):
        with Image.open(path) as picture:
            width_px, height_px = picture.size
        mask = np.zeros((height_px, width_px), dtype=np.bool_)
        mask[100:200, 100:200] = True
        lamp = Instance(mask, "lamp", 0.9, "It gives light.", Box(80, 80, 240, 240), Regions(), "lamp")
        made = prediction(Outcome((lamp,), Trace("the lamp")), parse_label_config(XML), "rsvp-earlier")
        shown = ward.client.create_prediction(int(task["id"]), made)
        submitted = {"result": shown["result"], "parent_prediction": shown["id"], "was_cancelled": False}
        ward.client.create_annotation(int(task["id"]), submitted)

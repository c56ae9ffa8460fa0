"""Pre-labelling a project of the real Label Studio, killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.labelstudio import listing
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.filters import parse_filter
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.prelabel.selection import Selection
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, Scene, make_scene

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
IMAGES, TASKS = 6, 60
WAIT_S = 120.0


def say(line: str) -> None:
    print(line)  # noqa: T201


@dataclass(frozen=True)
class Running:
    """Label Studio and a project of `TASKS` tasks."""

    client: LabelStudioClient
    token: str
    project: int
    folder: Path

    def start(self, *more: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RSVP_")} | {
            "RSVP_LABEL_STUDIO_URL": self.client.base_url,
            "RSVP_LABEL_STUDIO_TOKEN": self.token,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "rsvp_backend", "prelabel", "--project", str(self.project), "--json"]
        command += ["--work-dir", str(self.folder), *more]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def done(self, *more: str) -> tuple[int, dict[str, Any], str]:
        process = self.start(*more)
        output, complaint = process.communicate(timeout=300)
        return process.returncode, json.loads(output.splitlines()[-1]) if output else {}, complaint

    def held(self) -> dict[int, list[str]]:
        tasks = self.client.tasks(self.project)
        return {int(task["id"]): [str(one["model_version"]) for one in task["predictions"]] for task in tasks}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("prelabel")
    label_studio.prepare(HOME, say)
    child, url, account = label_studio.start(HOME, data / "label-studio", say)
    try:
        token = create_personal_token(url, account.email, account.password, replace=True)
        with LabelStudioClient(url, token, timeout_s=120) as client:
            yield Running(client, token, fill(client, data), data / "work")
    finally:
        child.stop()


def fill(client: LabelStudioClient, data: Path) -> int:
    project = int(client.create_project("prelabel", default_label_config(["Object"]))["id"])
    scenes = [make_scene(EVALUATION_SEEDS_FROM + number, "easy") for number in range(IMAGES)]
    paths = [data / f"{number}.png" for number in range(IMAGES)]
    for path, scene in zip(paths, scenes, strict=True):
        scene.image.save(path)
    uris = client.upload_files(project, paths)
    asked = [(n % IMAGES, question(scenes[n % IMAGES], n // IMAGES)) for n in range(TASKS)]
    tasks = [{"data": {"image": uris[image], "instruction": text, "n": n}} for n, (image, text) in enumerate(asked)]
    client.import_tasks(project, tasks)
    return project


def question(scene: Scene, number: int) -> str:
    return scene.questions[number % len(scene.questions)].instruction


def test_a_killed_run_goes_on_and_every_task_has_one_prediction(running: Running) -> None:
    before = running.held()
    assert len(before) == TASKS
    status, figures, complaint = running.done("--dry-run")
    assert status == 0, complaint
    version, first = str(figures["version"]), min(before)
    assert figures["tasks"] == TASKS
    empty = {"result": [], "score": None, "model_version": version + RETRY_SUFFIX}
    running.client.create_prediction(first, empty)
    running.client.create_prediction(first + 1, {**empty, "model_version": version})

    process, until_s = running.start(), time.monotonic() + WAIT_S
    while sum(map(bool, running.held().values())) < 8 and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    killed_at = sum(version in versions for versions in running.held().values())
    assert killed_at > 0

    status, report, complaint = running.done()
    assert status == 0, complaint
    assert report["version"] == version
    assert report["failed"] == 0
    assert {task: versions for task, versions in running.held().items() if versions != [version]} == {}


def test_the_data_manager_understands_filters_and_orders(running: Running) -> None:
    client = running.client
    project = int(client.create_project("selection", default_label_config(["Object"]))["id"])
    uri = next(iter(client.tasks(running.project)))["data"]["image"]
    cameras = ("north", "north", "south", "north")
    data = [{"image": uri, "instruction": "the mug", "camera": name, "n": n} for n, name in enumerate(cameras)]
    client.import_tasks(project, [{"data": one} for one in data])
    ids = [int(task["id"]) for task in client.tasks(project)]
    client.create_annotation(ids[0], {"result": []})
    client.create_prediction(ids[3], {"result": [], "score": 0.1, "model_version": "older"})
    client.create_prediction(ids[2], {"result": [], "score": None, "model_version": f"newer{RETRY_SUFFIX}"})

    def chosen(selection: Selection) -> list[int]:
        found = [int(task["id"]) for task in selection.tasks(client, project, "newer", listing.at_once)]
        assert selection.count(client, project, "newer") == len(found)
        return found

    north = parse_filter("data.camera = north")
    assert chosen(Selection()) == [ids[1], ids[3], ids[2]]
    assert chosen(Selection((north, parse_filter("data.n >= 1")), order="doubt")) == [ids[3], ids[1]]
    assert set(chosen(Selection((parse_filter("data.camera ~ nor"),), annotated=True, order="random"))) == {
        ids[0], ids[1], ids[3],
    }  # fmt: skip
    assert chosen(Selection(ranges=((ids[0], ids[1]), (ids[3], ids[3])))) == [ids[1], ids[3]]
    assert chosen(Selection((parse_filter("created_at > 2020-01-01"), parse_filter("total_predictions = 0")))) == [
        ids[1]
    ]
    client.create_prediction(ids[1], {"result": [], "score": 0.5, "model_version": "newer"})
    assert chosen(Selection()) == [ids[3], ids[2]]

"""Label Studio's "Retrieve predictions" on more tasks than fit into the time: none is lost, none is there twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.pushing import push
from rsvp_backend.labelstudio.replies import TaskGoneError
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
TASKS, SCENES = 24, 6
TIMEOUT_S = 0.5


def say(line: str) -> None:
    print(line)  # noqa: T201


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("retrieve")
    label_studio.prepare(HOME, say)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVP_PREDICT_TIMEOUT_S", str(TIMEOUT_S))
        with running(HOME, data, say) as stack:
            yield stack


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(stack.label_studio_url, stack.token) as client:
        yield client


@pytest.fixture(scope="module")
def project(stack: Stack, client: LabelStudioClient, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Different questions about a few scenes; one more task is asked what it has no instruction for."""
    folder = tmp_path_factory.mktemp("scenes")
    project = int(client.create_project("more than fits", default_label_config())["id"])
    client.create_ml_backend(project, stack.backend.url, stack.backend.model_version)
    scenes = [make_scene(seed, "easy") for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + SCENES)]
    paths = [folder / f"{number}.png" for number in range(SCENES)]
    for path, scene in zip(paths, scenes, strict=True):
        scene.image.save(path)
    uris = client.upload_files(project, paths)
    names = ["cup", "hammer", "ball", "key"]
    data = [{"image": uris[n % SCENES], "instruction": f"the {names[n // SCENES]}"} for n in range(TASKS)]
    client.import_tasks(project, [{"data": one} for one in data])
    return project


def test_every_task_ends_with_one_prediction_and_no_empty_one(
    stack: Stack, client: LabelStudioClient, project: int
) -> None:
    client.retrieve_predictions(project)
    backlog = _get(stack, "backlog")
    assert backlog["waiting"] + backlog["stored"] > TASKS / 2
    until_s = time.monotonic() + 150
    while not _settled(client, project, stack.backend.model_version):
        assert time.monotonic() < until_s, f"{_versions(client, project)}\n{_get(stack, 'backlog')}"
        time.sleep(0.5)
    shown = _get(stack, "backlog")
    assert (shown["waiting"], shown["failed"], shown["detail"]) == (0, 0, None)
    client.retrieve_predictions(project)  # all have one of the version: the backend is not asked again
    assert _settled(client, project, stack.backend.model_version)


def test_a_task_that_is_gone_is_told_apart(client: LabelStudioClient, project: int) -> None:
    (some, *_) = client.tasks(project)
    with pytest.raises(TaskGoneError, match="task 999999"):
        client.task(project, 999_999)
    assert client.task(project, int(some["id"]))["data"] == some["data"]


def test_pushing_twice_stores_once_and_takes_the_empty_one_away(client: LabelStudioClient, project: int) -> None:
    (some, *_) = client.tasks(project)
    task = int(some["id"])
    client.create_prediction(task, {"result": [], "score": None, "model_version": f"other{RETRY_SUFFIX}"})
    item = {"result": [], "score": 0.5, "model_version": "other"}
    assert [push(client, task, item, "other") for _ in range(2)] == [True, False]
    held = [one["model_version"] for one in client.predictions(task)]
    assert (held.count("other"), held.count(f"other{RETRY_SUFFIX}")) == (1, 0)


def _settled(client: LabelStudioClient, project: int, version: str) -> bool:
    return _versions(client, project) == [[version]] * TASKS


def _versions(client: LabelStudioClient, project: int) -> list[list[str]]:
    return [[str(one["model_version"]) for one in task["predictions"]] for task in client.tasks(project)]


def _get(stack: Stack, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{stack.backend.url}/{path}", trust_env=False).json()
    return answer

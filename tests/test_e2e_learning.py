"""Learning through the real Label Studio: corrections in, a promoted version out, and what is shown after it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from rsvp_backend import cli
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.learning import Lesson, learn
from rsvp_backend.lessons import CancelledError, Told
from rsvp_backend.scenes import Scene, make_scene
from rsvp_backend.scenes.parts import part_mask
from rsvp_backend.settings import Settings, load_settings
from rsvp_backend.training.finetune_config import FinetuneConfig
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.replay import object_crop
from rsvp_backend.types import BoolMask, Instance, Marks, Outcome, Regions, Trace

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
XML = default_label_config(["Part"])
TEXT = "head of the hammer"
CORRECTED, OPEN = 16, 2


@dataclass(frozen=True)
class Taught:
    """A project with corrections, what was learned from it, and what was told on the way."""

    settings: Settings
    stack: Stack
    client: LabelStudioClient
    project: int
    told: list[Told]
    lesson: Lesson


def say(line: str) -> None:
    print(line)  # noqa: T201


def hammers(count: int) -> list[tuple[Scene, int]]:
    """Scenes with a hammer, and its number in them."""
    found: list[tuple[Scene, int]] = []
    seed = 8_000_000
    while len(found) < count:
        scene = make_scene(seed, "easy", 480, questions_per_kind=0)
        items = [i for i, item in enumerate(scene.layout.items) if item.name == "hammer"]
        found += [(scene, items[0])] if items else []
        seed += 1
    return found


def correct(client: LabelStudioClient, task: int, scene: Scene, item: int) -> None:
    """The whole hammer was predicted; a person leaves its head."""
    config = parse_label_config(XML)

    def predicted(mask: BoolMask) -> dict[str, Any]:
        crop = object_crop(scene.masks[item], Marks(), 0.2)
        head = Instance(mask, TEXT, 0.5, "It drives the nail.", crop, Regions(), "Part")
        return prediction(Outcome((head,), Trace(TEXT)), config, "rsvp-earlier")

    stored = client.create_prediction(task, predicted(scene.masks[item]))
    results = copy.deepcopy(stored["result"])
    right = predicted(part_mask(scene, item, "head"))["result"][0]["value"]
    results[0] |= {"value": right, "origin": "prediction-changed"}
    client.create_annotation(task, {"result": results, "parent_prediction": stored["id"], "was_cancelled": False})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    data = tmp_path_factory.mktemp("learning")
    label_studio.prepare(HOME, say)
    with running(HOME, data, say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
        settings = load_settings(
            versions=data / "versions",
            label_studio_url=stack.label_studio_url,
            label_studio_token=stack.token,
            replay="none",  # what is forgotten is benchmarks/learning.py's to tell, in minutes
        )
        project = fill(client, stack, data)
        told: list[Told] = []
        lesson = learn(settings, project, told.append, config=FinetuneConfig(steps=80, batch=8))
        yield Taught(settings, stack, client, project, told, lesson)


def fill(client: LabelStudioClient, stack: Stack, data: Path) -> int:
    project = int(client.create_project("hammers", XML)["id"])
    client.create_ml_backend(project, stack.backend.url, stack.backend.model_version)
    scenes = hammers(CORRECTED + OPEN)
    paths = [data / f"{n}.png" for n in range(len(scenes))]
    for path, (scene, _) in zip(paths, scenes, strict=True):
        scene.image.save(path)
    uris = client.upload_files(project, paths)
    client.import_tasks(project, [{"data": {"image": uri, "instruction": "the hammer"}} for uri in uris])
    tasks = {task["data"]["image"]: int(task["id"]) for task in client.tasks(project)}
    for uri, (scene, item) in zip(uris[:CORRECTED], scenes[:CORRECTED], strict=True):
        correct(client, tasks[uri], scene, item)
    return project


def test_corrections_become_a_better_version_and_it_is_promoted(taught: Taught) -> None:
    lesson = taught.lesson
    assert lesson.promoted, str(lesson)
    assert lesson.corrections == CORRECTED
    assert lesson.scores["held_out_after"] > lesson.scores["held_out_before"] + 0.3
    assert taught.settings.versions is not None
    registry = Registry(taught.settings.versions)
    assert registry.current() == lesson.version
    record = registry.verify(str(lesson.version)).record
    assert (len(record.data), record.parent, record.decision) == (CORRECTED, None, "promote")
    assert not list(taught.settings.versions.parent.glob("versions-work/project-*/*"))


def test_the_lesson_tells_what_it_does(taught: Taught) -> None:
    stages = list(dict.fromkeys(told.stage for told in taught.told))
    assert stages == ["reading", "images", "training", "comparing", "promoting", "predicting"]
    training = [told for told in taught.told if told.stage == "training"]
    assert (training[-1].done, training[-1].total) == (80, 80)


def test_label_studio_follows_and_open_tasks_are_predicted_again(taught: Taught) -> None:
    health = httpx.get(f"{taught.stack.backend.url}/health", trust_env=False).json()
    assert str(taught.lesson.version) in health["model_version"]
    (backend,) = taught.client.ml_backends(taught.project)
    assert backend["title"] == health["model_version"]
    assert taught.client.project(taught.project)["model_version"] == health["model_version"]
    open_tasks = list(taught.client.open_tasks(taught.project, 10))
    assert len(open_tasks) == OPEN
    versions = [[one["model_version"] for one in task["predictions"]] for task in open_tasks]
    assert versions == [[health["model_version"]]] * OPEN
    assert f"predicted {OPEN} open tasks again" in taught.lesson.notes


def test_the_same_corrections_are_not_learned_twice(taught: Taught) -> None:
    again = learn(taught.settings, taught.project)
    assert again.version is None
    assert f"nothing new since version {taught.lesson.version}" in again.notes[0]


def test_what_a_lesson_was_cut_off_from_is_done_by_the_next(taught: Taught) -> None:
    """Predictions of the new version are missing, as if the worker had died after the promotion."""
    client = taught.client
    lost, kept = (task["predictions"][0]["id"] for task in client.open_tasks(taught.project, OPEN))
    client.delete_prediction(int(lost))

    def cancelling(told: Told) -> None:
        if told.stage == "predicting":
            raise CancelledError

    cancelled = learn(taught.settings, taught.project, cancelling)
    assert cancelled.notes[1] == f"cancelled after {OPEN} of {OPEN} open tasks were predicted again; the version stays"
    found = [one["id"] for task in client.open_tasks(taught.project, OPEN) for one in task["predictions"]]
    assert (len(found), kept in found, lost in found) == (OPEN, True, False)


def test_rank_explains_which_tasks_come_first(
    taught: Taught, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", taught.stack.label_studio_url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", taught.stack.token)
    assert cli.main(["rank", "--project", str(taught.project), "--random", "0", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert len(tasks) == OPEN
    assert tasks[0]["value"] >= tasks[1]["value"]
    assert all(one["reason"].startswith("score ") for one in tasks)


def test_a_project_without_annotations_has_nothing_to_teach(
    taught: Taught, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = int(taught.client.create_project("empty", XML)["id"])
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", taught.stack.label_studio_url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", taught.stack.token)
    monkeypatch.setenv("RSVP_VERSIONS", str(taught.settings.versions))
    assert cli.main(["finetune", "--project", str(empty)]) == 0
    assert "submit annotations first" in capsys.readouterr().out
    assert cli.main(["finetune", "--project", "99999"]) == 1
    assert "99999" in capsys.readouterr().err

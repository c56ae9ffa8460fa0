"""The demo's project in Label Studio: twelve images with instructions, predicted by the ML-backend contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rsvp_backend.demo.process import Say
from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, LEVELS, Question, Scene, make_scene

TITLE = "RSVP demo"
TASKS = 12
BATCH = 4  # Label Studio waits 100 s for one request; small ones also let a person see progress
KINDS = ("function", "name")


@dataclass(frozen=True, slots=True)
class DemoProject:
    """Ids in Label Studio."""

    project: int
    backend: int
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backend:
    """The backend as Label Studio is told of it. Its title is the model version: uncertainty sampling needs that."""

    url: str
    model_version: str


def open_project(client: LabelStudioClient, backend: Backend, data: Path, say: Say) -> DemoProject:
    """The project of an earlier run, its backend brought up to date, else a new one. Raises `LabelStudioError`."""
    state = data / "demo.json"
    if state.exists():
        kept = json.loads(state.read_text())
        project = DemoProject(kept["project"], kept["backend"], tuple(kept["task_ids"]))
        try:
            present = {int(task["id"]) for task in client.tasks(project.project)}
            if present.issuperset(project.task_ids):
                client.update_ml_backend(project.backend, project.project, backend.url, backend.model_version)
                say(f"Project {project.project} of an earlier run is used again")
                return project
        except LabelStudioError as error:
            say(f"The project of an earlier run is gone or broken; making a new one ({error})")
    project = create_project(client, backend, demo_tasks(data / "images"), TITLE)
    state.write_text(json.dumps(asdict(project)))
    say(f"Project {project.project}: {len(project.task_ids)} images with instructions imported")
    return project


def create_project(
    client: LabelStudioClient,
    backend: Backend,
    tasks: Sequence[tuple[Path, str]],
    title: str,
    label_config: str | None = None,
) -> DemoProject:
    """Make a project with (image file, instruction) tasks and connect the backend to it.

    ``label_config``: None for what ``rsvp-backend label-config`` prints for the demo's classes.
    """
    label_config = label_config or default_label_config(tuple(LEVELS["easy"].classes))
    project = int(client.create_project(title, label_config)["id"])
    uris = client.upload_files(project, [path for path, _ in tasks])
    client.import_tasks(
        project,
        [
            {"data": {"image": uri, "instruction": instruction}}
            for uri, (_, instruction) in zip(uris, tasks, strict=True)
        ],
    )
    backend_id = int(client.create_ml_backend(project, backend.url, backend.model_version)["id"])
    return DemoProject(project, backend_id, tuple(sorted(int(task["id"]) for task in client.tasks(project))))


def demo_tasks(folder: Path, count: int = TASKS) -> list[tuple[Path, str]]:
    """Write the first ``count`` evaluation scenes as PNG files; (file, instruction) each, kinds in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for index in range(count):
        scene = make_scene(EVALUATION_SEEDS_FROM + index, "easy")
        path = folder / f"scene-{scene.seed}.png"
        scene.image.save(path)
        tasks.append((path, _question(scene, KINDS[index % len(KINDS)]).instruction))
    return tasks


def preannotate(client: LabelStudioClient, project: DemoProject, say: Say) -> list[dict[str, Any]]:
    """Have Label Studio retrieve the predictions, a few tasks at a time; the tasks with all they hold.

    Tasks that have one of the current model version are skipped by Label Studio itself.
    """
    for start in range(0, len(project.task_ids), BATCH):
        batch = project.task_ids[start : start + BATCH]
        client.retrieve_predictions(project.project, batch)
        say(f"Predictions: {start + len(batch)} of {len(project.task_ids)} tasks asked")
    return [task for task in client.tasks(project.project) if int(task["id"]) in project.task_ids]


def regions_of(task: dict[str, Any], kind: str = "brushlabels") -> list[dict[str, Any]]:
    """The newest prediction's results of one type; empty where there is none."""
    predictions = sorted(task["predictions"], key=lambda prediction: int(prediction["id"]))
    return [result for result in predictions[-1]["result"] if result["type"] == kind] if predictions else []


def _question(scene: Scene, kind: str) -> Question:
    """The scene's question of that kind, else its first about an object that is there."""
    present = [question for question in scene.questions if question.present]
    return next((question for question in present if question.kind == kind), present[0])

"""Distillation through the real Label Studio: the reasoner learns a word that only annotators knew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from test_e2e_learning import HOME, hammers, say

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.run import Stack, running
from rsvp_backend.distilling import Distilled, Sources, distill_reasoner
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.settings import load_settings
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.replay import object_crop
from rsvp_backend.types import Instance, Marks, Outcome, Regions, Trace

pytestmark = pytest.mark.e2e
XML = default_label_config(["Tool"])
INSTRUCTION = "gizmo please"
CORRECTED, OPEN = 30, 2


@dataclass(frozen=True)
class Taught:
    stack: Stack
    client: LabelStudioClient
    project: int
    before: str
    versions: Path
    distilled: Distilled


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    data = tmp_path_factory.mktemp("distilling")
    label_studio.prepare(HOME, say)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVP_REASONER_VERSIONS", str(data / "reasoner-versions"))
        with running(HOME, data, say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
            settings = load_settings(label_studio_url=stack.label_studio_url, label_studio_token=stack.token)
            project = fill(client, stack, data)
            config = DistillConfig(steps=80, batch=8, replay_trained=64, replay_scored=30)
            found = distill_reasoner(settings, Sources(project), config=config)
            yield Taught(stack, client, project, stack.backend.model_version, data / "reasoner-versions", found)


def fill(client: LabelStudioClient, stack: Stack, data: Path) -> int:
    """Hammers; in all but the last ones an annotator has left the mask of the hammer."""
    project = int(client.create_project("gizmos", XML)["id"])
    client.create_ml_backend(project, stack.backend.url, stack.backend.model_version)
    scenes = hammers(CORRECTED + OPEN)
    paths = [data / f"{n}.png" for n in range(len(scenes))]
    for path, (scene, _) in zip(paths, scenes, strict=True):
        scene.image.save(path)
    uris = client.upload_files(project, paths)
    client.import_tasks(project, [{"data": {"image": uri, "instruction": INSTRUCTION}} for uri in uris])
    tasks = {task["data"]["image"]: int(task["id"]) for task in client.tasks(project)}
    config = parse_label_config(XML)
    for uri, (scene, item) in zip(uris[:CORRECTED], scenes[:CORRECTED], strict=True):
        mask, name = scene.masks[item], scene.layout.items[item].phrase
        crop = object_crop(mask, Marks(), 0.2)
        shown = Instance(mask, name, 0.5, f"the {name} is the gizmo.", crop, Regions(), "Tool")
        stored = client.create_prediction(tasks[uri], prediction(Outcome((shown,), Trace(name)), config, "rsvp-0"))
        client.create_annotation(
            tasks[uri], {"result": stored["result"], "parent_prediction": stored["id"], "was_cancelled": False}
        )
    return project


def test_the_word_is_learned_and_the_version_promoted(taught: Taught) -> None:
    found = taught.distilled
    assert found.promoted, str(found)
    assert found.examples == {"correction": CORRECTED}
    assert found.scores["held_out_after"] > found.scores["held_out_before"] + 0.2
    assert Registry(taught.versions).current() == found.version


def test_label_studio_follows_and_open_tasks_are_predicted_again(taught: Taught) -> None:
    health = httpx.get(f"{taught.stack.backend.url}/health", trust_env=False).json()
    assert health["model_version"] != taught.before
    (backend,) = taught.client.ml_backends(taught.project)
    assert backend["title"] == health["model_version"]
    assert taught.client.project(taught.project)["model_version"] == health["model_version"]
    open_tasks = list(taught.client.open_tasks(taught.project, 10))
    assert [[one["model_version"] for one in task["predictions"]] for task in open_tasks] == [
        [health["model_version"]]
    ] * OPEN
    assert f"predicted {OPEN} open tasks again" in taught.distilled.notes

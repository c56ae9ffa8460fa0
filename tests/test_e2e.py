"""The demo's code end to end: the real Label Studio asks the real backend, and keeps masks with their reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.demo.project import (
    TASKS,
    DemoProject,
    create_project,
    demo_tasks,
    open_project,
    preannotate,
    regions_of,
)
from rsvp_backend.demo.run import DemoOptions, Stack, run_demo, running
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.client import LabelStudioClient

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)


def say(line: str) -> None:
    """Progress goes to pytest's captured output."""
    print(line)  # noqa: T201


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder after one run of the demo as `make demo` does it, in this process, until the predictions."""
    data = tmp_path_factory.mktemp("demo")
    label_studio.prepare(HOME, say)
    assert run_demo(DemoOptions(once=True, home=HOME.root, data=data), say) == 0
    return data


@pytest.fixture(scope="module")
def stack(demo_data: Path) -> Iterator[Stack]:
    """Both servers, started again on the same data."""
    with running(HOME, demo_data, say) as both:
        yield both


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(stack.label_studio_url, stack.token) as opened:
        yield opened


@pytest.fixture(scope="module")
def demo_project(client: LabelStudioClient, stack: Stack, demo_data: Path) -> DemoProject:
    """The first run's project, found again."""
    return open_project(client, stack.backend, demo_data, say)


def test_every_task_holds_its_prediction_and_masks_hold_their_reasoning(
    client: LabelStudioClient, demo_project: DemoProject, stack: Stack, demo_data: Path
) -> None:
    tasks = list(client.tasks(demo_project.project))
    assert len(tasks) == TASKS
    assert sum(bool(regions_of(task)) for task in tasks) >= TASKS - 1
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == stack.backend.model_version
        assert 0.0 <= prediction["score"] <= 1.0
        masks, texts = regions_of(task), regions_of(task, "textarea")
        for region in masks:
            _check_mask(region, _image(task, demo_data))
            assert region["meta"]["rsvp"]["instruction"] == task["data"]["instruction"]
        assert {text["id"] for text in texts} == {region["id"] for region in masks}
        assert all(line.strip() for text in texts for line in text["value"]["text"])


def test_a_second_run_uses_the_project_again_and_predicts_nothing_twice(
    client: LabelStudioClient, demo_project: DemoProject, demo_data: Path
) -> None:
    kept = json.loads((demo_data / "demo.json").read_text())
    assert (demo_project.project, demo_project.backend) == (kept["project"], kept["backend"])
    tasks = preannotate(client, demo_project, say)
    assert [len(task["predictions"]) for task in tasks] == [1] * TASKS


def test_the_demo_draws_its_picture(demo_data: Path) -> None:
    with Image.open(demo_data / "demo.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64) or ()) > 50


def test_bad_tasks_are_empty_and_the_rest_is_answered(
    client: LabelStudioClient, stack: Stack, demo_data: Path, tmp_path: Path
) -> None:
    (first, ask_first), (second, ask_second) = demo_tasks(tmp_path, 2)
    project = create_project(client, stack.backend, [(first, ask_first)], "bad input")
    (uri,) = client.upload_files(project.project, [second])
    wrong = [
        {"image": f"/data/upload/{project.project}/missing.png", "instruction": ask_second},
        {"image": uri},
        {"image": uri, "instruction": ask_second},
    ]
    client.import_tasks(project.project, [{"data": data} for data in wrong])
    client.retrieve_predictions(project.project)
    by_data = {json.dumps(task["data"], sort_keys=True): task for task in client.tasks(project.project)}
    missing, silent, good = (by_data[json.dumps(data, sort_keys=True)] for data in wrong)
    assert [len(task["predictions"]) for task in (missing, silent)] == [1, 1]
    assert regions_of(missing) == regions_of(silent) == []
    assert regions_of(good)
    assert "missing.png" in stack.children[1].log.read_text()
    (answered,) = [task for task in by_data.values() if int(task["id"]) in project.task_ids]
    assert regions_of(answered)


def _check_mask(region: dict[str, Any], image: Image.Image) -> None:
    assert (region["original_width"], region["original_height"]) == image.size
    mask = rle.decode(region["value"]["rle"], image.height, image.width)
    assert mask.shape == (image.height, image.width)
    assert 0 < mask.sum() < mask.size


def _image(task: dict[str, Any], data: Path) -> Image.Image:
    return Image.open(data / "media" / str(task["data"]["image"]).removeprefix("/data/"))

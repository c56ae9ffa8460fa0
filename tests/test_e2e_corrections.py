"""Annotations submitted to the real Label Studio, read back as corrections."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.corrections import Reading, Reason, read_corrections
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import Box, Instance, Outcome, Regions, Trace

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
XML = default_label_config(["Key", "Cup"])
NAMES = ("untouched", "edited", "deleted", "drawn", "skipped", "imported", "bulk", "open")
WIDTH_PX, HEIGHT_PX = 60, 40
CROP = Box(4, 2, 30, 24)


def area(left: int, top: int, right: int, bottom: int) -> Any:
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def predicted(mask: Any) -> dict[str, Any]:
    key = Instance(mask, "door key", 0.8, "A key opens doors.", CROP, Regions(rows=(1,), columns=(2,)), "Key")
    return prediction(Outcome((key,), Trace("what opens the door")), parse_label_config(XML), "rsvp-1")


def polygon() -> dict[str, Any]:
    points = [[x / WIDTH_PX * 100, y / HEIGHT_PX * 100] for x, y in [(40, 20), (50, 20), (50, 30), (40, 30)]]
    return {
        "id": "drawn", "type": "polygonlabels", "from_name": "shapes", "to_name": "image", "origin": "manual",
        "original_width": WIDTH_PX, "original_height": HEIGHT_PX, "image_rotation": 0,
        "value": {"points": points, "closed": True, "polygonlabels": ["Cup"]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioClient]:
    """A Label Studio without a backend: what a person submits does not depend on what a model finds."""
    label_studio.prepare(HOME, print)
    child, url, account = label_studio.start(HOME, tmp_path_factory.mktemp("corrections"), print)
    try:
        with LabelStudioClient(url, create_personal_token(url, account.email, account.password)) as opened:
            yield opened
    finally:
        child.stop()


@pytest.fixture(scope="module")
def annotated(client: LabelStudioClient, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, int]]:
    """A project of its own, without a backend, with one task of each name: (project, task ids by name)."""
    project = int(client.create_project("corrections", XML)["id"])
    path: Path = tmp_path_factory.mktemp("images") / "wide.png"
    turned = Image.new("RGB", (HEIGHT_PX, WIDTH_PX), "navy")
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side in the file, 60 x 40 upright
    turned.save(path, exif=exif)
    (uri,) = client.upload_files(project, [path])
    tasks: list[dict[str, Any]] = [{"data": {"image": uri, "name": name}} for name in NAMES]
    tasks[NAMES.index("imported")]["annotations"] = [{"result": [polygon()]}]
    client.import_tasks(project, tasks)
    ids = {task["data"]["name"]: int(task["id"]) for task in client.tasks(project)}
    _submit(client, project, ids)
    return project, ids


def _submit(client: LabelStudioClient, project: int, ids: dict[str, int]) -> None:
    mask = area(6, 4, 20, 14)
    edited = predicted(area(6, 4, 20, 18))["result"]
    client.create_prediction(ids["bulk"], predicted(mask))
    action = {"id": "predictions_to_annotations", "project": project}
    client._object("POST", "/api/dm/actions", params=action, json={"selectedItems": {"all": True, "excluded": []}})
    for name in ("untouched", "edited", "deleted", "skipped"):
        shown = client.create_prediction(ids[name], predicted(mask))
        results = copy.deepcopy(shown["result"])
        if name == "edited":
            results[0] |= {"value": edited[0]["value"], "origin": "prediction-changed"}
            results[1] |= {"value": {"text": ["It has teeth."]}, "origin": "prediction-changed"}
        kept = results if name in ("untouched", "edited") else []
        submitted = {"result": kept, "parent_prediction": shown["id"], "was_cancelled": name == "skipped"}
        client.create_annotation(ids[name], submitted)
    for result in ([], [polygon()]):  # the person submits twice
        client.create_annotation(ids["drawn"], {"result": result, "was_cancelled": False})


def _read(client: LabelStudioClient, project: int, **options: Any) -> tuple[dict[int, Correction], Reading]:
    reading = Reading()
    fetcher = ImageFetcher(client.base_url, client.auth)
    found = list(read_corrections(client, project, fetcher, 0.2, reading, page_size=2, **options))
    assert len({one.task for one in found}) == len(found)
    return {one.task: one for one in found}, reading


def test_submitted_annotations_are_read_back(client: LabelStudioClient, annotated: tuple[int, dict[str, int]]) -> None:
    project, ids = annotated
    found, reading = _read(client, project)
    seen = {name: (found[ids[name]].origin, found[ids[name]].text) for name in NAMES if ids[name] in found}
    assert seen == {
        "untouched": (Origin.CONFIRMED, "door key"),
        "edited": (Origin.CORRECTED, "door key"),
        "deleted": (Origin.REFUSED, "door key"),
        "drawn": (Origin.DRAWN, "Cup"),
    }
    masks = [found[ids[name]].mask for name in seen]
    expected = [area(6, 4, 20, 14), area(6, 4, 20, 18), area(0, 0, 0, 0), area(40, 20, 50, 30)]
    assert all(np.array_equal(mask, wanted) for mask, wanted in zip(masks, expected, strict=True))
    assert [found[ids[name]].crop for name in seen] == [CROP, CROP, CROP, Box(39, 19, 51, 31)]
    assert found[ids["edited"]].reasoning == "It has teeth."
    assert found[ids["untouched"]].annotator == client.whoami()["id"]
    assert (reading.tasks, dict(reading.left_out)) == (
        7,
        {Reason.SUPERSEDED: 1, Reason.IMPORTED: 2, Reason.SKIPPED: 1},
    )
    assert reading.tasks_left_out[Reason.SKIPPED] == [ids["skipped"]]


def test_reading_again_gives_the_same_and_images_load_upright(
    client: LabelStudioClient, annotated: tuple[int, dict[str, int]]
) -> None:
    project, ids = annotated
    first, _ = _read(client, project)
    second, _ = _read(client, project, include_imported=True)
    assert second.keys() - first.keys() == {ids["imported"]}
    assert {task: one.key for task, one in first.items()} == {task: second[task].key for task in first}
    assert second[ids["imported"]].load_image().size == (WIDTH_PX, HEIGHT_PX)

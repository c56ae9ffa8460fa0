"""Hand-made tasks as Label Studio's API serves them, and a project of them over HTTP, for the report's tests."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from ls_http import Reply, Seen, Server, json_reply, serving
from PIL import Image

from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.types import BoolMask, Box, Instance, Outcome, Regions, Trace

XML = default_label_config(["Key", "Cup"])
CONFIG = parse_label_config(XML)
WIDTH_PX, HEIGHT_PX = 60, 40
IMAGE_PX = WIDTH_PX * HEIGHT_PX
PROJECT = 3
SQUARE = (6, 4, 16, 14)  # 100 px
Dict = dict[str, Any]


def area(left: int, top: int, right: int, bottom: int, size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX)) -> BoolMask:
    mask = np.zeros(size_px[::-1], dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def predicted(
    *masks: BoolMask,
    number: int = 7,
    score: float = 0.8,
    label: str = "Key",
    version: str = "rsvp-1",
    created_at: str = "2026-11-02T10:00:00Z",
) -> Dict:
    """A stored prediction of this backend; empty without masks."""
    height_px, width_px = masks[0].shape if masks else (1, 1)
    box = Box(0, 0, width_px, height_px)
    found = [Instance(mask, "door key", score, "It opens doors.", box, Regions(), label) for mask in masks]
    made = prediction(Outcome(tuple(found), Trace("what opens the door")), CONFIG, version)
    return made | {"id": number, "created_at": created_at}


def annotation(results: Sequence[Dict], number: int = 1, person: int = 1, **changed: object) -> Dict:
    when = "2026-11-03T10:00:00Z"
    return {
        "id": number, "result": copy.deepcopy(list(results)), "completed_by": {"id": person}, "was_cancelled": False,
        "ground_truth": False, "created_at": when, "updated_at": when, "updated_by": person, "parent_prediction": None,
        "lead_time": None,
    } | changed  # fmt: skip


def drawn(mask: BoolMask, label: str = "Key", identity: str = "drawn", **changed: object) -> Dict:
    height_px, width_px = mask.shape
    return {
        "id": identity, "type": "brushlabels", "from_name": "mask", "to_name": "image", "origin": "manual",
        "original_width": width_px, "original_height": height_px, "image_rotation": 0,
        "value": {"format": "rle", "rle": rle.encode(mask), "brushlabels": [label]},
    } | changed  # fmt: skip


def changed(results: Sequence[Dict], mask: BoolMask | None = None, label: str | None = None) -> list[Dict]:
    """A prediction's results after a person changed the first region."""
    edited = copy.deepcopy(list(results))
    edited[0]["origin"] = "prediction-changed"
    if mask is not None:
        edited[0]["value"]["rle"] = rle.encode(mask)
    if label is not None:
        edited[0]["value"]["brushlabels"] = [label]
    return edited


def photo(width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), "navy").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def task(annotations: list[Dict], predictions: list[Dict] | None = None, number: int = 5, **data: object) -> Dict:
    return {
        "id": number, "annotations": annotations, "predictions": predictions or [],
        "data": {"image": photo(), "instruction": "what opens the door"} | data,
        "total_annotations": sum(not one["was_cancelled"] for one in annotations),
        "cancelled_annotations": sum(one["was_cancelled"] for one in annotations),
    }  # fmt: skip


def submitted(number: int, before: Dict, results: Sequence[Dict], **more: object) -> Dict:
    """A task whose annotation began with ``before``."""
    return task([annotation(results, number, parent_prediction=before["id"], **more)], [before], number)


class Studio:
    """One project; ``tasks`` gives its tasks by id, made when they are asked for."""

    def __init__(self, tasks: Callable[[], Iterator[Dict]], title: str) -> None:
        self.tasks, self.title = tasks, title

    def project(self, _: Seen) -> Reply:
        return json_reply({"id": PROJECT, "title": self.title, "label_config": XML})

    def users(self, _: Seen) -> Reply:
        return json_reply([{"id": 1, "first_name": "Ada", "last_name": "L.", "email": "a@example.com"}])

    def list(self, request: Seen) -> Reply:
        query = parse_qs(request.path.partition("?")[2])
        filters = json.loads(query["query"][0])["filters"]["items"]
        page: list[Dict] = []
        for one in self.tasks():
            if all(self._fits(one, item) for item in filters):
                page.append(one)
            if len(page) == int(query["page_size"][0]):
                break
        return json_reply({"tasks": page, "total": 1000})

    @staticmethod
    def _fits(one: Dict, item: Dict) -> bool:
        seen, wanted = one[item["filter"].removeprefix("filter:tasks:")], item["value"]
        return bool({"greater": seen > wanted, "equal": seen == wanted, "less": seen < wanted}[item["operator"]])


@contextmanager
def studio(
    tasks: Sequence[Dict] | Callable[[], Iterator[Dict]], title: str = "Doors"
) -> Iterator[tuple[Server, LabelStudioClient]]:
    """Serve a project; ``tasks`` in order of their ids."""
    made = tasks if callable(tasks) else lambda: iter(tasks)
    with serving() as server, LabelStudioClient(server.url, "x" * 40) as client:
        served = Studio(made, title)
        server.routes |= {
            f"/api/projects/{PROJECT}/": served.project, "/api/tasks": served.list, "/api/users/": served.users,
        }  # fmt: skip
        yield server, client

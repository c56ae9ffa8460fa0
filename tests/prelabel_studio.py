"""A Label Studio that holds one project in memory, over HTTP, as far as pre-labelling asks of it; it can misbehave."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from ls_http import Reply, Seen, Server, json_reply, serving
from PIL import Image

from rsvp_backend.labelstudio.tags import default_label_config

TOKEN = "0123456789abcdef0123456789abcdef01234567"
PROJECT = 7
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": lambda have, want: have == want,
    "greater": lambda have, want: have is not None and have > want,
    "less": lambda have, want: have is not None and have < want,
    "in": lambda have, want: want["min"] <= have <= want["max"],
    "in_list": lambda have, want: have in want,
    "contains": lambda have, want: any(part in have for part in ([want] if isinstance(want, str) else want)),
    "not_contains": lambda have, want: not any(part in have for part in want),
}


@dataclass
class FakeStudio:
    """``tasks``: id -> data; ``predictions``: id -> prediction with its task. ``fault``: asked before each request; a
    reply of its stands for the real one, `LOST` drops the real one's after the work is done."""

    server: Server
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotated: set[int] = field(default_factory=set)
    label_config: str = default_label_config(["Object"])
    fault: Callable[[Seen], Reply | str | None] = lambda _: None
    backends: list[dict[str, Any]] = field(default_factory=list)
    bulk: list[int] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def add(self, count: int, instruction: str = "the cup {}") -> None:
        for _ in range(count):
            task = len(self.tasks) + 1
            self.tasks[task] = {"image": "/data/upload/1/a.png", "instruction": instruction.format(task)}

    def hold(self, task: int, version: str, score: float | None = 0.5) -> int:
        number = next(self.ids)
        self.predictions[number] = {"id": number, "task": task, "model_version": version, "score": score, "result": []}
        return number

    def of(self, task: int, version: str) -> list[dict[str, Any]]:
        with self.lock:
            found = list(self.predictions.values())
        return [one for one in found if (one["task"], one["model_version"]) == (task, version)]

    def answer(self, request: Seen) -> Reply:
        wrong = self.fault(request)
        if isinstance(wrong, tuple):
            return wrong
        with self.lock:
            reply = self._route(request)
        return (200, {"Content-Length": "1000"}, b"") if wrong == LOST else reply

    def _route(self, request: Seen) -> Reply:
        path, _, query = request.path.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if request.headers.get("authorization") != f"Token {TOKEN}":
            return json_reply({"detail": "Invalid token."}, 401)
        if path == "/api/current-user/whoami":
            return json_reply({"id": 1})
        if path == f"/api/projects/{PROJECT}/":
            return json_reply({"id": PROJECT, "label_config": self.label_config, "model_version": ""})
        if path == "/api/ml":
            return json_reply(self.backends)
        if path == "/api/tasks":
            return self._listed(asked)
        if path == f"/api/projects/{PROJECT}/import/predictions":
            return self._imported(json.loads(request.body))
        if path.startswith("/api/predictions"):
            return self._predictions(request, path, asked)
        if path == "/data/upload/1/a.png":
            return 200, {"Content-Type": "image/png"}, picture()
        return json_reply({"detail": "Not found."}, 404)

    def _listed(self, asked: dict[str, str]) -> Reply:
        query = json.loads(asked.get("query", "{}"))
        rows = [row for row in map(self._row, sorted(self.tasks)) if self._fits(row, query)]
        if "view" in asked:
            rows.reverse()
        size, page = int(asked["page_size"]), int(asked.get("page", 1))
        return json_reply({"tasks": rows[size * (page - 1) : size * page], "total": len(rows)})

    def _row(self, task: int) -> dict[str, Any]:
        held = [one for one in self.predictions.values() if one["task"] == task]
        return {
            "id": task,
            "data": self.tasks[task],
            "predictions_model_versions": ",".join(one["model_version"] for one in held),
            "predictions": held,
            "total_annotations": int(task in self.annotated),
            "cancelled_annotations": 0,
        }

    def _fits(self, row: dict[str, Any], query: dict[str, Any]) -> bool:
        return all(
            _OPERATORS[one["operator"]](_field(row, one["filter"].removeprefix("filter:tasks:")), one["value"])
            for one in query.get("filters", {}).get("items", [])
        )

    def _imported(self, items: list[dict[str, Any]]) -> Reply:
        if any(item["task"] not in self.tasks for item in items):
            return json_reply({"detail": "Validation error", "validation_errors": {"non_field_errors": ["x"]}}, 400)
        for item in items:
            self._kept(item)
        self.bulk.append(len(items))
        return json_reply({"created": len(items)}, 201)

    def _predictions(self, request: Seen, path: str, asked: dict[str, str]) -> Reply:
        if request.method == "GET":
            return json_reply([one for one in self.predictions.values() if one["task"] == int(asked["task"])])
        if request.method == "DELETE":
            self.predictions.pop(int(path.rstrip("/").rpartition("/")[2]), None)
            return 204, {}, b""
        item = json.loads(request.body)
        if item["task"] not in self.tasks:
            errors = {"task": [f'Invalid pk "{item["task"]}" - object does not exist.']}
            return json_reply({"detail": "Validation error", "validation_errors": errors}, 400)
        return json_reply(self._kept(item), 201)

    def _kept(self, item: dict[str, Any]) -> dict[str, Any]:
        number = next(self.ids)
        self.predictions[number] = {"id": number, **item}
        return self.predictions[number]


LOST = "the answer is lost"


@contextmanager
def fake_studio() -> Iterator[FakeStudio]:
    with serving() as server:
        studio = FakeStudio(server)

        class Routes(dict[str, Callable[[Seen], Reply]]):
            def get(self, key: str, default: Any = None) -> Any:
                return studio.answer

        server.routes = Routes()
        yield studio


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(file, "PNG")
    return file.getvalue()


def _field(row: dict[str, Any], name: str) -> Any:
    return row["data"].get(name.removeprefix("data.")) if name.startswith("data.") else row[name]

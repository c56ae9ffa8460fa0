"""A thin client of Label Studio's API: what the demo, `prelabel`, `doctor` and learning need, no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from rsvp_backend.errors import LabelStudioAwayError, LabelStudioError
from rsvp_backend.labelstudio.auth import TokenAuth
from rsvp_backend.labelstudio.replies import (
    JSON,
    TaskGoneError,
    any_json,
    complaint,
    json_object,
    refusal,
    validation_errors,
)

_BY_SCORE = "tasks:predictions_score"


class LabelStudioClient:
    """Calls Label Studio at ``base_url`` with a token of either kind (see `TokenAuth`). A context manager.

    Every method raises `LabelStudioError` where Label Studio refuses or cannot be reached.
    """

    def __init__(self, base_url: str, token: str, timeout_s: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        self.auth = TokenAuth(self.base_url, token)
        self._http = httpx.Client(base_url=self.base_url, auth=self.auth, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def whoami(self) -> JSON:
        """The token's user; the cheapest call that checks address and token."""
        return self._object("GET", "/api/current-user/whoami")

    def there(self) -> None:
        """Raises `LabelStudioAwayError` where nobody answers; a refusal is an answer."""
        try:
            self.whoami()
        except LabelStudioAwayError:
            raise
        except LabelStudioError:
            return

    def release(self) -> tuple[str, str]:
        """Label Studio's version, and the time of its clock as HTTP's ``Date`` has it (empty where there is none)."""
        response = self._request("GET", "/api/version")
        return str(json_object(response).get("release", "")), next(iter(response.headers.get_list("date")), "")

    def users(self) -> list[JSON]:
        """The people of the token's organization: ``id``, ``first_name``, ``last_name``, ``email``, and more."""
        return self._list("/api/users/")

    def create_project(self, title: str, label_config: str, **fields: Any) -> JSON:
        return self._object("POST", "/api/projects/", json={"title": title, "label_config": label_config, **fields})

    def project(self, project: int) -> JSON:
        return self._object("GET", f"/api/projects/{project}/")

    def projects(self) -> list[JSON]:
        """``id`` and ``title`` of the first hundred that the token's user may see."""
        params = {"page_size": 100, "include": "id,title"}
        return list(self._object("GET", "/api/projects/", params=params).get("results", []))

    def update_project(self, project: int, **fields: Any) -> JSON:
        return self._object("PATCH", f"/api/projects/{project}/", json=fields)

    def upload_files(self, project: int, paths: Sequence[Path], timeout_s: float = 120.0) -> list[str]:
        """Store files without making tasks; their URIs (``/data/upload/...``) in the order of ``paths``."""
        uris = []
        for path in paths:
            with path.open("rb") as file:
                answer = self._object(
                    "POST",
                    f"/api/projects/{project}/import",
                    params={"commit_to_project": "false"},
                    files={"file": (path.name, file)},
                    timeout=timeout_s,
                )
            upload = self._object("GET", f"/api/import/file-upload/{answer['file_upload_ids'][0]}")
            uris.append(f"/data/{str(upload['file']).lstrip('/')}")
        return uris

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]], timeout_s: float = 120.0) -> JSON:
        """``tasks``: each ``{"data": {...}}``, with ``predictions`` if wanted."""
        return self._object("POST", f"/api/projects/{project}/import", json=list(tasks), timeout=timeout_s)

    def create_ml_backend(
        self,
        project: int,
        url: str,
        title: str,
        is_interactive: bool = True,
        extra_params: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        **fields: Any,
    ) -> JSON:
        """Connect a backend (Label Studio calls its /health and /setup meanwhile). ``title`` becomes the project's
        model version: equal to the backend's ``model_version``, it makes uncertainty sampling work."""
        body: JSON = {"project": project, "url": url, "title": title, "is_interactive": is_interactive, **fields}
        if extra_params is not None:
            body["extra_params"] = dict(extra_params)
        return self._object("POST", "/api/ml", json=body, timeout=timeout_s)

    def ml_backends(self, project: int, timeout_s: float = 60.0) -> list[JSON]:
        """The project's backends. Label Studio asks each for /health and /setup meanwhile, and notes its version."""
        return self._list("/api/ml", timeout=timeout_s, params={"project": project})

    def update_ml_backend(
        self, backend: int, project: int, url: str, title: str, timeout_s: float = 60.0, **fields: Any
    ) -> JSON:
        """Move a connected backend to another address or title; the project's model version follows the title."""
        body: JSON = {"project": project, "url": url, "title": title, **fields}
        return self._object("PATCH", f"/api/ml/{backend}", json=body, timeout=timeout_s)

    def webhooks(self, project: int) -> list[JSON]:
        return self._list("/api/webhooks/", params={"project": project})

    def create_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> JSON:
        """One that sends every event with its data, as Label Studio itself makes it for a backend."""
        body = {"project": project, "url": url, "headers": dict(headers), "is_active": True, "send_payload": True,
                "send_for_all_actions": True}  # fmt: skip
        return self._object("POST", "/api/webhooks/", json=body)

    def update_webhook(self, webhook: int, **fields: Any) -> JSON:
        return self._object("PATCH", f"/api/webhooks/{webhook}/", json=fields)

    def retrieve_predictions(
        self, project: int, task_ids: Sequence[int] | None = None, timeout_s: float = 130.0
    ) -> JSON:
        """The data manager's "Retrieve Predictions" on all tasks or on ``task_ids``: one synchronous call.

        It reports success whatever the backend answered; look at the tasks' predictions.
        """
        selected: JSON = {"all": True, "excluded": []}
        if task_ids is not None:
            selected = {"all": False, "included": list(task_ids)}
        return self._object(
            "POST",
            "/api/dm/actions",
            params={"id": "retrieve_tasks_predictions", "project": project},
            json={"selectedItems": selected},
            timeout=timeout_s,
        )

    def tasks(self, project: int, page_size: int = 100) -> Iterator[JSON]:
        """All tasks with their annotations and predictions, page by page."""
        page, seen = 1, 0
        while True:
            answer = self._object(
                "GET",
                "/api/tasks",
                params={"project": project, "fields": "all", "page": page, "page_size": page_size},
            )
            tasks = answer["tasks"]
            yield from tasks
            seen += len(tasks)
            if len(tasks) < page_size or seen >= answer["total"]:
                return
            page += 1

    def task(self, project: int, task: int, timeout_s: float = 60.0) -> JSON:
        """One task of the project with its predictions, its data as imported. Raises `TaskGoneError`.

        Unlike ``GET /api/tasks/<id>``, this lets Label Studio ask no backend for predictions.
        """
        found = self._tasks_after(project, task - 1, [("id", "less", task + 1)], 1, timeout_s)
        if not found:
            raise TaskGoneError(f"project {project} has no task {task}: it was deleted, or the token may not see it")
        return found[0]

    def predictions(self, task: int) -> list[JSON]:
        """All predictions of a task, of whatever version."""
        return self._list("/api/predictions/", params={"task": task})

    def delete_prediction(self, prediction: int) -> None:
        """One that is gone already is no error."""
        path = f"/api/predictions/{prediction}/"
        response = self._request("DELETE", path)
        if not response.is_success and response.status_code != 404:
            raise refusal(response)

    def annotated_tasks(self, project: int, page_size: int = 25, timeout_s: float = 120.0) -> Iterator[JSON]:
        """The tasks with annotations, skipped ones too, with all they hold; by id, those with submitted ones first.

        ``data`` is as it was imported: cloud addresses are not resolved, so they do not expire while one reads. Each
        page starts behind the last id, so that tasks that come or go meanwhile make none be missed.
        """
        submitted = ("total_annotations", "greater", 0)
        only_skipped = [("total_annotations", "equal", 0), ("cancelled_annotations", "greater", 0)]
        for filters in ([submitted], only_skipped):
            last = 0
            while tasks := self._tasks_after(project, last, filters, page_size, timeout_s):
                yield from tasks
                last = max(int(task["id"]) for task in tasks)

    def open_tasks(self, project: int, limit: int, page_size: int = 25, timeout_s: float = 120.0) -> Iterator[JSON]:
        """At most ``limit`` tasks that nobody has annotated or skipped, with all they hold; the lowest scores of the
        project's model version first, then those without one."""
        page = 1
        while limit > 0:
            params = {
                "project": project,
                "fields": "all",
                "resolve_uri": "false",
                "page": page,
                "page_size": page_size,
                "query": _query([("total_annotations", "equal", 0), ("cancelled_annotations", "equal", 0)], _BY_SCORE),
            }
            answer = self._object("GET", "/api/tasks", params=params, timeout=timeout_s)
            yield from answer["tasks"][:limit]
            limit -= len(answer["tasks"])
            if page * page_size >= answer["total"] or not answer["tasks"]:
                return
            page += 1

    def _tasks_after(
        self, project: int, last: int, filters: Sequence[tuple[str, str, int]], page_size: int, timeout_s: float
    ) -> list[JSON]:
        params = {
            "project": project,
            "fields": "all",
            "resolve_uri": "false",
            "page_size": page_size,
            "query": _query([("id", "greater", last), *filters], "tasks:id"),
        }
        answer = self._object("GET", "/api/tasks", params=params, timeout=timeout_s)
        return [task for task in answer["tasks"] if int(task["id"]) > last]

    def create_annotation(self, task: int, annotation: Mapping[str, Any]) -> JSON:
        """Submit in the token's user's name: ``{result, parent_prediction, was_cancelled}`` as the editor does."""
        return self._object("POST", f"/api/tasks/{task}/annotations", json=dict(annotation))

    def create_prediction(self, task: int, prediction: Mapping[str, Any]) -> JSON:
        """``prediction``: ``{result, score, model_version}`` of `regions.prediction`. Raises `TaskGoneError` too."""
        response = self._request("POST", "/api/predictions", json={"task": task, **prediction})
        if response.status_code == 400 and "task" in validation_errors(response):
            raise TaskGoneError(f"POST /api/predictions answered 400: {complaint(response)}")
        return json_object(response)

    def create_predictions(
        self, project: int, predictions: Sequence[Mapping[str, Any]], timeout_s: float = 120.0
    ) -> int:
        """All or none, in one request; how many. Each is ``{task, result, score, model_version}``."""
        path = f"/api/projects/{project}/import/predictions"
        return int(self._object("POST", path, json=list(predictions), timeout=timeout_s)["created"])

    def task_page(
        self,
        project: int,
        query: Mapping[str, Any],
        page_size: int = 100,
        page: int = 1,
        timeout_s: float = 120.0,
        view: int | None = None,
        whole: bool = False,
    ) -> JSON:
        """``{tasks, total}`` by a query of the data manager's (``filters``, ``ordering``), or by one of its views.

        Tasks with their data as imported; ``predictions_model_versions`` only where the query names it, annotations
        and predictions only if ``whole``.
        """
        asked: JSON = {"query": json.dumps(query)} if view is None else {"view": view}
        if whole:
            asked["fields"] = "all"
        params = {"project": project, "resolve_uri": "false", "page": page, "page_size": page_size, **asked}
        return self._object("GET", "/api/tasks", params=params, timeout=timeout_s)

    def _object(self, method: str, path: str, **options: Any) -> JSON:
        return json_object(self._request(method, path, **options))

    def _list(self, path: str, **options: Any) -> list[JSON]:
        response = self._request("GET", path, **options)
        answer = any_json(response)
        if not response.is_success or not isinstance(answer, list):
            raise refusal(response)
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise LabelStudioAwayError(
                f"{method} {self.base_url}{path} failed: {error or type(error).__name__}. Does Label Studio run there "
                "(RSVP_LABEL_STUDIO_URL)?"
            ) from error


def _query(filters: Sequence[tuple[str, str, int]], ordering: str) -> str:
    """The data manager's: ``filters`` are columns with an operator and a number."""
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}
        for column, operator, value in filters
    ]
    return json.dumps({"filters": {"conjunction": "and", "items": items}, "ordering": [ordering]})

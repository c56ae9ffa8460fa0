"""Storing a prediction in Label Studio once, whoever else stores one meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.listing import one_of, query, versions_of, with_version

Items = Mapping[int, Mapping[str, Any]]
"""Predictions as `answers.answer` makes them, by the task's id."""


def push(client: LabelStudioClient, task_id: int, item: Mapping[str, Any], version: str) -> bool:
    """Store ``item`` (as `answers.answer` makes it) unless the task holds a prediction of ``version``; whether it did.

    After that the empty predictions that stood for "not answered yet" are deleted. Raises `LabelStudioError`.
    """
    held = client.predictions(task_id)
    store = all(one.get("model_version") != version for one in held)
    if store:
        client.create_prediction(task_id, {**item, "model_version": version})
    for one in held:
        if one.get("model_version") == version + RETRY_SUFFIX:
            client.delete_prediction(int(one["id"]))
    return store


def push_many(client: LabelStudioClient, project: int, items: Items, version: str) -> dict[int, bool]:
    """`push` for tasks of one project, in two requests instead of two for each; whether each was stored now.

    All or none are: raises `RefusedError` where one of them is gone or refused, or the token may store single ones
    only. They can be pushed one by one then.
    """
    held = _held(client, project, items, version)
    new = {task: item for task, item in items.items() if version not in held.get(task, ())}
    if new:
        made = [{"task": task, **item, "model_version": version} for task, item in new.items()]
        client.create_predictions(project, made)
    for task, versions in held.items():
        if version + RETRY_SUFFIX in versions:
            push(client, task, items[task], version)
    return {task: task in new for task in items}


def drop_doubles(client: LabelStudioClient, task_id: int, version: str) -> int:
    """Delete all but the first prediction of ``version`` on a task; how many that were."""
    found = sorted(int(one["id"]) for one in client.predictions(task_id) if one.get("model_version") == version)
    for prediction in found[1:]:
        client.delete_prediction(prediction)
    return len(found[1:])


def _held(client: LabelStudioClient, project: int, items: Items, version: str) -> dict[int, frozenset[str]]:
    """The versions of the tasks among ``items`` that have some kind of ``version``."""
    page = client.task_page(project, query(one_of(list(items)), with_version(version)), page_size=len(items))
    return {int(task["id"]): versions_of(client, task) for task in page["tasks"]}

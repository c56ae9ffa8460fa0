"""Storing a prediction in Label Studio once, whoever else stores one meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.labelstudio.client import LabelStudioClient


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

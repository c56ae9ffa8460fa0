"""Bodies that are read by hand, as OpenAPI describes them: for whoever makes clients or tests of the routes."""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]


def _body(properties: JSON, required: tuple[str, ...] = ()) -> JSON:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _with_id(more: JSON | None = None) -> JSON:
    return {"type": "object", "properties": {"id": {"type": "integer"}, **(more or {})}}


PREDICT = _body(
    {
        "tasks": {"type": "array", "items": _with_id({"data": {"type": "object"}})},
        "label_config": {"type": "string"},
        "project": {"type": "string"},
        "params": {
            "type": "object",
            "properties": {"context": {"type": "object", "properties": {"result": {"type": "array", "items": {}}}}},
        },
    },
    ("tasks",),
)
EVENT = _body(
    {"action": {"type": "string"}, "project": _with_id(), "task": _with_id(), "annotation": {"type": "object"}}
)

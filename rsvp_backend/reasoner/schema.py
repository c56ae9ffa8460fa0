"""The one answer form that all reasoners use: its JSON schema, and an example of it for prompts.

Field order is part of the form: models that fill it in order decide on the object first and justify it last.
"""

from __future__ import annotations

import json
from typing import Any

from rsvp_backend.types import Marks

MAX_PROPOSALS = 16


def region_fields(marks: Marks) -> dict[str, int]:
    """The region fields of ``marks`` with the highest id of each; the lowest is 1."""
    if marks.kind == "cells":
        return {"regions": marks.rows * marks.columns}
    return {"rows": marks.rows, "columns": marks.columns}


def answer_schema(marks: Marks, labels: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON schema of an answer; region ids and labels are bounded to those that exist.

    Every property is required and nothing else is allowed, which OpenAI's strict mode asks for. ``label`` is part of
    the form only where there are several labels to choose from.
    """
    properties: dict[str, Any] = {"object": {"type": "string"}}
    if len(labels) > 1:
        properties["label"] = {"type": "string", "enum": list(labels)}
    properties["present"] = {"type": "boolean"}
    for field, highest in region_fields(marks).items():
        ids = {"type": "integer", "minimum": 1, "maximum": highest}
        properties[field] = {"type": "array", "items": ids, "maxItems": highest}
    properties["reasoning"] = {"type": "string"}
    return _closed({"proposals": {"type": "array", "items": _closed(properties), "maxItems": MAX_PROPOSALS}})


def answer_example(marks: Marks, labels: tuple[str, ...] = ()) -> str:
    """The form as a line of JSON with placeholders in words, for prompts."""
    proposal: dict[str, Any] = {"object": "<object with attributes>"}
    if len(labels) > 1:
        proposal["label"] = "<label>"
    proposal["present"] = True
    for field, highest in region_fields(marks).items():
        proposal[field] = list(range(min(2, highest), min(3, highest) + 1))
    proposal["reasoning"] = "<rationale>"
    return json.dumps({"proposals": [proposal]})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }

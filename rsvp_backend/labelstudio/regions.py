"""Outcome -> a prediction as Label Studio stores and shows it."""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

from rsvp_backend.labelstudio.drawing import Drawn, draw
from rsvp_backend.labelstudio.tags import LabelConfig, MaskLabel, match_label
from rsvp_backend.types import Instance, Outcome

SHORT_REASON_CHARS = 200  # more pushes the other regions out of Label Studio's panel
RECORD_KEY = "rsvp"

_log = logging.getLogger(__name__)


def prediction(
    outcome: Outcome, config: LabelConfig, model_version: str, trace_id: str | None = None
) -> dict[str, Any]:
    """One item of ``/predict``'s results: ``{result, score, model_version}``, plain JSON values only.

    ``result``: per instance a region of the config's mask tag and, where the config has a per-region TextArea, its
    short reason under the same id; ids are new on every call (Label Studio keeps accepted ids, a second use would
    clash). ``score``: that of the weakest mask, 0.0 without any, so that the lowest score is what most needs a person's
    look.
    """
    results: list[dict[str, Any]] = []
    for instance in outcome.instances:
        results += _region(instance, outcome.trace.instruction, config, model_version, trace_id)
    score = min((_score(instance) for instance in outcome.instances), default=0.0)
    return {"result": results, "score": score, "model_version": model_version}


def short_reason(instance: Instance) -> str:
    """The reasoning in at most ``SHORT_REASON_CHARS`` characters, cut between words; the object where it is empty."""
    texts = (" ".join(text.split()) for text in (instance.reasoning, instance.object))
    return _shortened(next(filter(None, texts), "no reasoning given"))


def choose_label(instance: Instance, config: LabelConfig) -> tuple[MaskLabel, bool]:
    """The instance's label and whether it is sure: by the reasoner's label, else the object's name, else the first.

    An unmatched mask keeps the config's first label, because Label Studio needs one; its text says so.
    """
    found = match_label(instance.label, config.labels) or match_label(instance.object, config.labels)
    if found is None:
        _log.warning("no label of %r fits label %r, object %r", config.mask_name, instance.label, instance.object)
    return found or config.labels[0], found is not None


def _region(
    instance: Instance, instruction: str, config: LabelConfig, model_version: str, trace_id: str | None
) -> list[dict[str, Any]]:
    height_px, width_px = instance.mask.shape
    label, sure = choose_label(instance, config)
    reason = short_reason(instance)
    if not sure:
        reason = _shortened(f"(label unsure) {reason}")
    shared = {
        "id": str(uuid.uuid4()),
        "to_name": config.image_name,
        "origin": "prediction",
        "original_width": width_px,
        "original_height": height_px,
        "image_rotation": 0,
    }
    drawn, kind = draw(instance.mask, config.kind, config.tolerance_px), f"{config.kind}labels"
    record = _record(instance, instruction, sure, model_version, trace_id) | _lost(drawn)
    mask = shared | {
        "from_name": config.mask_name,
        "type": kind,
        "score": _score(instance),
        "value": {**drawn.value, kind: [label.output]},
        "meta": {"text": [reason], RECORD_KEY: record},
    }
    if config.reasoning_name is None:
        return [mask]
    return [mask, shared | {"from_name": config.reasoning_name, "type": "textarea", "value": {"text": [reason]}}]


def _record(
    instance: Instance, instruction: str, label_matched: bool, model_version: str, trace_id: str | None
) -> dict[str, Any]:
    """The machine-readable record; Label Studio keeps unknown keys of ``meta`` through a person's submit."""
    regions = instance.regions
    return {
        "object": instance.object,
        "label": instance.label,
        "label_matched": label_matched,
        "instruction": instruction,
        "reasoning": instance.reasoning,
        "regions": {
            "rows": [int(i) for i in regions.rows],
            "columns": [int(i) for i in regions.columns],
            "cells": [int(i) for i in regions.cells],
        },
        "box_xyxy": [int(edge) for edge in instance.box.xyxy],
        "score": _score(instance),
        "model_version": model_version,
        "trace_id": trace_id,
    }


def _lost(drawn: Drawn) -> dict[str, Any]:
    """What a polygon or a rectangle does not say of the mask; nothing where it says all."""
    return {"drawn": {"iou": drawn.iou, "holes_filled": drawn.holes}} if drawn.iou < 1.0 else {}


def _score(instance: Instance) -> float:
    """In [0, 1], four decimals; 0.0 for what is not a number, which JSON and Label Studio cannot hold."""
    score = float(instance.score)
    return round(min(max(score, 0.0), 1.0), 4) if math.isfinite(score) else 0.0


def _shortened(text: str) -> str:
    """Cut between words, or inside of one where the text has no spaces near the end (some languages have none)."""
    if len(text) <= SHORT_REASON_CHARS:
        return text
    head = text[: SHORT_REASON_CHARS - 2]
    space = head.rfind(" ")
    return f"{head[:space] if space > SHORT_REASON_CHARS // 2 else head} …"

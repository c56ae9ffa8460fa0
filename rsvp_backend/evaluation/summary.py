"""All records of a run -> its figures, as one JSON-ready dict. Shares and IoUs are in [0, 1]; None where undefined."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rsvp_backend.evaluation.metrics import (
    Convention,
    bootstrap_interval,
    ciou,
    giou,
    grouped_interval,
    precision_at,
)
from rsvp_backend.evaluation.records import Record
from rsvp_backend.evaluation.samples import EvaluationSet
from rsvp_backend.evaluation.stages import SIGNATURES, WRONG

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOX_THRESHOLD = 0.5
SEGINW_SETS = 25
_MAX_GROUPS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What was to be done, and what came of it. ``problems``: what could not be read or run; ``interrupted``: stopped
    before all were tried."""

    data: EvaluationSet
    records: Sequence[Record]
    version: str
    problems: Sequence[str] = ()
    interrupted: bool = False

    def partial(self) -> list[str]:
        """Why the figures are not those of the whole split; empty where they are."""
        reasons, samples = list[str](), len(self.data.samples)
        if samples < self.data.whole:
            reasons.append(f"limited to {samples} of {self.data.whole} samples")
        if self.interrupted:
            reasons.append("interrupted")
        if len(self.records) < samples:
            reasons.append(f"{len(self.records)} of {samples} samples have a result")
        if self.problems:
            reasons.append(f"{len(self.problems)} files, entries or samples could not be used")
        if self.data.name == "seginw" and len(self.data.sets) < SEGINW_SETS:
            reasons.append(f"{len(self.data.sets)} of {SEGINW_SETS} sets")
        return reasons


def summarise(run: Run, convention: Convention) -> dict[str, Any]:
    """Figures over all records, then by group."""
    partial = run.partial()
    summary: dict[str, Any] = {
        "dataset": run.data.name, "split": run.data.split, "version": run.version, "convention": convention.name,
        "partial": bool(partial), "partial_because": partial, **figures(run.records, convention),
    }  # fmt: skip
    if run.data.measure == "instances":
        summary |= _instances(run)
    groups: dict[str, dict[str, Any]] = {}
    for name in sorted({name for record in run.records for name in record.groups}):
        values = sorted({record.groups[name] for record in run.records if name in record.groups})
        if len(values) <= _MAX_GROUPS:
            groups[name] = {
                value: figures([r for r in run.records if r.groups.get(name) == value], convention) for value in values
            }
    rounded: dict[str, Any] = _finite({**summary, "by_group": groups, "problems": list(run.problems)})
    return rounded


def figures(records: Sequence[Record], convention: Convention) -> dict[str, Any]:
    """Masks, boxes and diagnosis of some samples. Intervals are 95 %, whole images are drawn."""
    found: dict[str, Any] = {"n": len(records)}
    outlined = [record for record in records if record.outlined]
    if outlined:
        found |= _masks(outlined, convention)
    boxed = [record for record in records if record.box_iou is not None]
    if boxed:
        ious = [record.box_iou or 0.0 for record in boxed]
        hits = [float(iou >= BOX_THRESHOLD) for iou in ious]
        found |= {
            "box_accuracy": float(np.mean(hits)), "box_accuracy_ci95": _interval(hits, boxed),
            "box_miou": float(np.mean(ious)),
        }  # fmt: skip
    return found | {"diagnosis": diagnosis(records), "seconds_per_sample": _mean(r.seconds for r in records)}


def diagnosis(records: Sequence[Record]) -> dict[str, Any]:
    """How often which stage was wrong, and how; shares of all samples, or of those where something is (not) there."""
    stages = [record.stages for record in records]
    there = [one for one in stages if one.present]
    absent = [one for one in stages if not one.present]
    wrong, signatures = Counter(one.wrong for one in stages), Counter(one.signature for one in stages)
    return {
        "right": _part(wrong[""], stages),
        **{name: _part(wrong[name], stages) for name in WRONG},
        **{name: _part(signatures[name], stages) for name in SIGNATURES},
        "object_right": _mean(None if one.object_right is None else float(one.object_right) for one in there),
        "absent_recall": _part(sum(not one.said_present for one in absent), absent),
        "absent_false_alarm": _part(sum(not one.said_present for one in there), there),
        "crop_recall": _mean(one.crop_recall or 0.0 for one in there),
        "crop_share": _mean(one.crop_share for one in stages),
        "stage2_iou_true_crop": _mean(one.true_crop_iou for one in there),
    }


def _masks(records: Sequence[Record], convention: Convention) -> dict[str, Any]:
    overlaps = [record.overlap for record in records]
    ious = [convention.iou(overlap) for overlap in overlaps]
    # The small term would put an IoU of exactly 0.5 below the threshold.
    exact = [replace(convention, sample_eps=0.0).iou(overlap) for overlap in overlaps]
    above, below = [o.intersection_px for o in overlaps], [o.union_px for o in overlaps]
    images = [record.image_id for record in records]
    return {
        "giou": giou(overlaps, convention), "giou_ci95": _interval(ious, records),
        "ciou": ciou(overlaps, convention), "ciou_ci95": list(grouped_interval(above, below, images)),
        "miou": float(np.mean([overlap.iou for overlap in overlaps])),
        "precision_at": {str(x): precision_at(exact, x) for x in THRESHOLDS},
    }  # fmt: skip


def _instances(run: Run) -> dict[str, Any]:
    """COCO's mask AP of each set, and their unweighted mean."""
    answered = {record.id: [(one.runs, one.score) for one in record.instances] for record in run.records}
    by_set = {name: truth.precision(answered) for name, truth in run.data.sets.items()}
    known = [found for found in by_set.values() if found is not None]
    return {
        "ap": _mean(found.ap for found in known), "ap_ci95": list(bootstrap_interval([found.ap for found in known])),
        "ap50": _mean(found.ap50 for found in known), "ap75": _mean(found.ap75 for found in known), "sets": len(known),
        "ap_by_set": {name: None if found is None else found.ap for name, found in by_set.items()},
    }  # fmt: skip


def _interval(values: Sequence[float], records: Sequence[Record]) -> list[float]:
    return list(grouped_interval(values, [1.0] * len(values), [record.image_id for record in records]))


def _part(count: int, of: Sequence[object]) -> float | None:
    return count / len(of) if of else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _finite(value: Any) -> Any:
    """JSON has no nan. Six digits, so that a table rounds once only."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value

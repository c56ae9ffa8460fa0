"""One annotation beside the prediction that it began with -> their masks, and from these the numbers of an answer.

A region is what was measured, not what Label Studio notes: untouched where mask and label are those of the stored
prediction, edited where either differs. Only where the prediction is not stored (a suggestion that was accepted in an
interactive session) its ``origin`` decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.labelstudio.annotations import Region, annotator, listed, when
from rsvp_backend.labelstudio.compared import Annotated, checked_mask
from rsvp_backend.labelstudio.reading import LeftOutError, Reading, Reason
from rsvp_backend.reports.answers import Answer, Fate, Judged
from rsvp_backend.types import BoolMask

_OF_A_PREDICTION = ("prediction", "prediction-changed")
_NO_ANSWER = (Reason.PROMPT, Reason.OTHER_IMAGE, Reason.EMPTY_MASK)  # the rest of the annotation counts all the same
_Planes = dict[str | None, BoolMask]


@dataclass(slots=True, eq=False)
class Compared:
    """The masks of one annotation by label, bool ``(height, width)``, image pixels, regions of a label in one.

    ``known``: whether all that was predicted is stored.
    """

    annotated: Annotated
    predicted: _Planes = field(default_factory=dict)
    final: _Planes = field(default_factory=dict)
    regions: list[Judged] = field(default_factory=list)
    known: bool = True

    def overlap(self) -> Overlap:
        """Label by label: a mask with the wrong label is a wrong mask."""
        both = either = 0
        for label in {*self.predicted, *self.final}:
            masks = [planes[label] for planes in (self.predicted, self.final) if label in planes]
            both += int((masks[0] & masks[-1]).sum()) if len(masks) == 2 else 0
            either += int((masks[0] | masks[-1]).sum())
        return Overlap(both, either)

    def add(self, region: Judged, before: BoolMask | None, after: BoolMask | None, final_label: str | None) -> None:
        self.regions.append(region)
        for planes, label, mask in ((self.predicted, region.label, before), (self.final, final_label, after)):
            if mask is not None:
                planes[label] = planes[label] | mask if label in planes else mask


def compare(annotated: Annotated, reading: Reading) -> Compared:
    """Raises `LeftOutError` where a mask cannot be read: half an answer would pass for a bad one."""
    found = Compared(annotated)
    for region in annotated.kept.values():
        try:
            _keep(found, annotated, region)
        except LeftOutError as left_out:
            if left_out.reason not in _NO_ANSWER:
                raise
            reading.leave_out(left_out.reason, annotated.task, detail=left_out.detail)
    for region in annotated.shown.values():
        if region.id not in annotated.kept and (before := _predicted(annotated, region)) is not None:
            _delete(found, annotated, region, before)
    return found


def measure(annotated: Annotated, raw_predictions: object, reading: Reading) -> Answer | None:
    """The numbers of an annotation; None where it is empty and nothing was predicted. Raises `LeftOutError`."""
    found, annotation = compare(annotated, reading), annotated.annotation
    version = _version(annotated, raw_predictions, found)
    if version is None and not found.regions:
        reading.leave_out(Reason.EMPTY, annotated.task)
        return None
    submitted = when(annotation, "created_at")
    return Answer(
        task=annotated.task,
        annotation=int(annotation.get("id") or 0),
        annotator=annotator(annotation),
        predicted=version is not None,
        version=version or "",
        submitted=submitted.astimezone(UTC) if submitted > datetime.min.replace(tzinfo=UTC) else None,
        lead_s=_seconds(annotation.get("lead_time")),
        regions=tuple(found.regions),
        overlap=found.overlap() if version is not None and found.known else None,
    )


def _keep(found: Compared, annotated: Annotated, region: Region) -> None:
    """A region of the annotation."""
    mask, stored = checked_mask(annotated, region), annotated.predicted.get(region.id)
    before = None if stored is None else _predicted(annotated, stored)
    if stored is not None and before is not None and mask is None:
        _delete(found, annotated, stored, before)
    elif mask is None:
        raise LeftOutError(Reason.EMPTY_MASK)
    elif stored is not None and before is not None:
        _compare(found, annotated, (stored, before), (region, mask))
    elif stored is None and region.origin in _OF_A_PREDICTION:
        _accept(found, annotated, region, mask)
    else:
        label, drawn_px = annotated.label(region), int(mask.sum())
        found.add(Judged(Fate.DRAWN, label, mask.size, 0, drawn_px, 0), None, mask, label)


def _compare(found: Compared, annotated: Annotated, old: tuple[Region, BoolMask], new: tuple[Region, BoolMask]) -> None:
    """A predicted region that is still there."""
    (stored, before), (region, after) = old, new
    label, relabelled = annotated.label(stored), stored.label != region.label
    fate = Fate.UNTOUCHED if not relabelled and np.array_equal(before, after) else Fate.EDITED
    counts_px = (int(before.sum()), int(after.sum()), int((before & after).sum()))
    judged = Judged(fate, label, after.size, *counts_px, _score(stored), relabelled)
    found.add(judged, before, after, annotated.label(region))


def _accept(found: Compared, annotated: Annotated, region: Region, mask: BoolMask) -> None:
    """A region that an interactive session suggested: what was suggested is known only where it was left as it was."""
    region = annotated.with_record(region)
    label, pixels = annotated.label(region), int(mask.sum())
    if region.origin == "prediction":
        untouched = Judged(Fate.UNTOUCHED, label, mask.size, pixels, pixels, pixels, _score(region))
        found.add(untouched, mask, mask, label)
        return
    found.known = False
    found.add(Judged(Fate.EDITED, label, mask.size, None, pixels, None, _score(region)), None, mask, label)


def _delete(found: Compared, annotated: Annotated, region: Region, before: BoolMask) -> None:
    label = annotated.label(region)
    deleted = Judged(Fate.DELETED, label, before.size, int(before.sum()), 0, 0, _score(region))
    found.add(deleted, before, None, None)


def _predicted(annotated: Annotated, region: Region) -> BoolMask | None:
    """The mask of a stored prediction's region; None where it is on another image, a prompt, or empty."""
    try:
        return checked_mask(annotated, region)
    except LeftOutError as left_out:
        if left_out.reason in _NO_ANSWER:
            return None
        raise


def _version(annotated: Annotated, raw_predictions: object, found: Compared) -> str | None:
    """That of the prediction which the annotation began with; None where there was none, "" where it has no name."""
    number = annotated.begun_with.id or _empty_before(annotated, found)
    for raw in listed(raw_predictions):
        if number and raw.get("id") == number:
            return str(raw.get("model_version") or "")
    if not any(region.predicted for region in found.regions):
        return None
    named = (_text(region.record.get("model_version")) for region in annotated.kept.values())
    return next(filter(None, named), "")


def _empty_before(annotated: Annotated, found: Compared) -> int:
    """The newest prediction before the annotation, if it is empty: that nothing was found is what was shown then."""
    if any(region.predicted for region in found.regions):
        return 0
    begun = when(annotated.annotation, "created_at")
    before = [one for one in annotated.predictions.values() if one.created_at <= begun]
    newest = max(before, key=lambda one: (one.created_at, one.id), default=None)
    return newest.id if newest is not None and not newest.regions else 0


def _score(region: Region) -> float | None:
    score = _number(region.record.get("score"))
    return None if score is None else min(1.0, max(0.0, score))


def _seconds(value: object) -> float | None:
    seconds = _number(value)
    return seconds if seconds is not None and seconds > 0 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""

"""One question to one variant: what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.evaluation.running import ANSWERS
from rsvp_backend.evaluation.samples import Sample, Truth
from rsvp_backend.experiments.oracle import Known
from rsvp_backend.experiments.variants import Pipeline, Variant
from rsvp_backend.targets import same_thing
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask, Box, EmptyReason, Marks, Outcome, Regions


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of one answer. ``present``: something is meant; ``said``: the pipeline's mask is not empty.

    ``crop_recall``: share of the true mask inside the crops, None where nothing is meant; ``crop_share`` and
    ``regions_share``: of the picture, in crops and in named regions, None where there are none; ``regions``: ids named;
    ``characters``: of the model's texts; ``object_right``: None where the data set names no object, or nothing is
    meant.
    """

    variant: str
    question: str
    repeat: int
    version: str
    image: str
    kind: str
    instruction: str
    present: bool
    said: bool
    intersection_px: int
    union_px: int
    crop_recall: float | None
    crop_share: float | None
    regions_share: float | None
    regions: int
    object_right: bool | None
    valid: bool
    zooms: int
    characters: int
    reason: str | None
    seconds: float

    @property
    def iou(self) -> float:
        return Overlap(self.intersection_px, self.union_px).iou

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.variant, self.question, self.repeat, self.version

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(variant: Variant, pipeline: Pipeline, version: str, sample: Sample, repeat: int) -> Row:
    """Ask and score, in the frame of the original picture.

    Raises `SampleError` where the sample cannot be read, or where a stage failed to run rather than to answer.
    """
    image = sample.image.load()
    truth = sample.truth.read(*image.size)
    shown = variant.change.shown(image)
    mask = variant.change.there(truth.mask, shown.size)
    instruction = variant.reword(sample.instruction) if variant.reword else sample.instruction
    known = Known(sample.id, mask, sample.object or instruction)
    began_s = time.perf_counter()
    outcome = pipeline.on(known, repeat)(shown, instruction)
    seconds = time.perf_counter() - began_s
    if outcome.reason not in ANSWERS:
        raise SampleError(f"{outcome.reason}: {outcome.detail}")
    found = variant.change.back(outcome.union(*shown.size), image.size)
    overlap = Overlap.of(found, truth.mask, truth.ignore)
    trace, said = outcome.trace, [p for p in outcome.trace.proposals if p.present]
    named = sample.object is not None and truth.present
    return Row(
        variant.name, sample.id, repeat, version, sample.image_id, sample.groups.get("kind", ""), instruction,
        present=truth.present, said=bool(found.any()),
        intersection_px=overlap.intersection_px, union_px=overlap.union_px,
        crop_recall=_recall(trace.crops, mask, truth), crop_share=_share(trace.crops, mask),
        regions_share=_regions_share([p.regions for p in said], pipeline.config.marks),
        regions=sum(len(p.regions.rows) + len(p.regions.columns) + len(p.regions.cells) for p in said),
        object_right=any(same_thing(p.object, sample.object or "") for p in said) if named else None,
        valid=outcome.reason != EmptyReason.INVALID_ANSWER,
        zooms=sum(bool(step.raw_texts) for step in trace.zooms), characters=_characters(outcome),
        reason=outcome.reason, seconds=round(seconds, 4),
    )  # fmt: skip


def _inside(boxes: Sequence[Box], mask: BoolMask) -> BoolMask:
    inside: BoolMask = np.zeros_like(mask)
    for box in boxes:
        inside[box.top : box.bottom, box.left : box.right] = True
    return inside


def _recall(crops: Sequence[Box], mask: BoolMask, truth: Truth) -> float | None:
    """0 where there is no crop; ``mask``: the truth in the frame of ``crops``."""
    if not truth.present:
        return None
    return float((_inside(crops, mask) & mask).sum() / max(1, mask.sum()))


def _share(crops: Sequence[Box], mask: BoolMask) -> float | None:
    return float(_inside(crops, mask).mean()) if crops else None


def _regions_share(named: Sequence[Regions], marks: Marks) -> float | None:
    cells: BoolMask = np.zeros((marks.rows, marks.columns), dtype=np.bool_)
    for regions in named:
        cells[np.ix_([row - 1 for row in regions.rows], [column - 1 for column in regions.columns])] = True
        for cell in regions.cells:
            cells[divmod(cell - 1, marks.columns)] = True
    return float(cells.mean()) if named else None


def _characters(outcome: Outcome) -> int:
    zooms = sum(len(text) for step in outcome.trace.zooms for text in step.raw_texts)
    return sum(len(text) for text in outcome.trace.raw_texts) + zooms

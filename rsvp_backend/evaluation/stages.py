"""Which stage was wrong, sample by sample, and which of the paper's four failure signatures it shows.

Stage 1 is measured by what it said (present or not, the object's name where the data set has one) and by its crops:
the share of the true mask inside (recall), and how much of the image they are. Stage 2 is run once more on the *true
crop*, that is the regions which the true mask touches, padded as ever, with the words that stage 1 gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from rsvp_backend.errors import SegmenterError
from rsvp_backend.evaluation.metrics import Overlap, box_iou, enclosing, mask_box
from rsvp_backend.evaluation.samples import Truth
from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.pipeline import RSVP
from rsvp_backend.targets import same_thing
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask, Box, EmptyReason, Outcome, Prompt, Proposal, Regions

GOOD_IOU = 0.5
"""A mask that reaches this is taken as right."""
WHOLE_RECALL = 0.9
"""Crops that hold this share of the true mask are taken as right."""
MISSED_RECALL = 0.25
"""Crops that hold less than this share of it are somewhere else."""

Wrong = Literal["", "stage1", "stage2", "both"]
Signature = Literal["", "false_localization", "incomplete_regions", "suboptimal_mask", "empty_output"]
WRONG: tuple[Wrong, ...] = ("stage1", "stage2", "both")
SIGNATURES: tuple[Signature, ...] = ("false_localization", "incomplete_regions", "suboptimal_mask", "empty_output")

_NOT_FOUND: dict[EmptyReason | None, str] = {
    EmptyReason.ABSENT: "stage 1 said that it is not there",
    EmptyReason.NO_REGIONS: "stage 1 said that it is there, but named no region",
    EmptyReason.INVALID_ANSWER: "stage 1 gave no valid answer",
    EmptyReason.EMPTY_MASK: "stage 2 found no pixel in the crop",
}


@dataclass(frozen=True, slots=True)
class Stages:
    """``object_right`` is None where the data set names no object, ``crop_recall`` and ``true_crop_iou`` where nothing
    is there, ``crop_recall`` and ``crop_share`` also where there was no crop."""

    present: bool
    said_present: bool
    object_right: bool | None
    crop_recall: float | None
    crop_share: float | None
    true_crop_iou: float | None
    wrong: Wrong = ""
    signature: Signature = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    wrong: Wrong
    signature: Signature
    why: str


def fit(found: BoolMask, truth: Truth) -> float:
    """IoU of masks, or of the boxes around them where the truth is boxes only."""
    if truth.outlined or not truth.present:
        return Overlap.of(found, truth.mask, truth.ignore).iou
    around_truth, around_found = enclosing(truth.boxes), mask_box(found)
    return box_iou(around_truth, around_found) if around_truth and around_found else 0.0


def examine(rsvp: RSVP, image: Image.Image, outcome: Outcome, truth: Truth, name: str | None) -> Stages:
    """``name``: of the object that is meant, where known. Raises `SampleError` where stage 2 fails on the true crop."""
    said = [proposal for proposal in outcome.trace.proposals if proposal.present]
    crops: BoolMask = np.zeros_like(truth.mask)
    for box in outcome.trace.crops:
        crops[box.top : box.bottom, box.left : box.right] = True
    measured = Stages(
        present=truth.present,
        said_present=bool(said),
        object_right=any(same_thing(p.object, name) for p in said) if name and said and truth.present else None,
        crop_recall=float((crops & truth.mask).sum() / truth.mask.sum()) if truth.present and crops.any() else None,
        crop_share=float(crops.mean()) if crops.any() else None,
        true_crop_iou=_on_true_crop(rsvp, image, outcome, truth),
    )
    found = outcome.union(*image.size)
    verdict = judge(measured, fit(found, truth), bool(found.any()), outcome.reason)
    return Stages(
        measured.present, measured.said_present, measured.object_right, measured.crop_recall, measured.crop_share,
        measured.true_crop_iou, verdict.wrong, verdict.signature, verdict.why,
    )  # fmt: skip


def judge(stages: Stages, iou: float, found: bool, reason: EmptyReason | None) -> Verdict:
    """What went wrong with a mask of ``iou``, by the measurements in ``stages``."""
    if not stages.present:
        if not found:
            return Verdict("", "", "")
        return Verdict("stage1", "false_localization", "nothing of the kind is there, but stage 1 said that it is")
    if iou >= GOOD_IOU:
        return Verdict("", "", "")
    recall, alone = stages.crop_recall or 0.0, stages.true_crop_iou or 0.0
    signature = _signature(stages, recall, found)
    misled = recall < WHOLE_RECALL or stages.object_right is False
    weak = alone < GOOD_IOU and stages.object_right is not False  # wrong words are no fault of stage 2
    # Stage 2 does well on the true crop: what it was given was too wide, or held too much else.
    wrong: Wrong = "both" if misled and weak else "stage2" if weak else "stage1"
    return Verdict(wrong, signature, _why(stages, signature, found, reason, recall, alone))


def _signature(stages: Stages, recall: float, found: bool) -> Signature:
    if not found:
        return "empty_output"
    if recall < MISSED_RECALL or stages.object_right is False:
        return "false_localization"
    return "incomplete_regions" if recall < WHOLE_RECALL else "suboptimal_mask"


def _why(
    stages: Stages, signature: Signature, found: bool, reason: EmptyReason | None, recall: float, alone: float
) -> str:
    if stages.object_right is False:
        first = "stage 1 named another object" + ("" if found else ", of which stage 2 found no pixel in the crop")
    elif not found:
        first = _NOT_FOUND.get(reason, "nothing was found")
    elif signature == "suboptimal_mask":
        first = f"the crop holds {recall:.0%} of the object and is {stages.crop_share or 0:.0%} of the image"
    else:
        first = f"the crop holds only {recall:.0%} of the object"
    return f"{first}; on the true crop stage 2 reaches IoU {alone:.2f}"


def _on_true_crop(rsvp: RSVP, image: Image.Image, outcome: Outcome, truth: Truth) -> float | None:
    crop = true_crop(rsvp, truth.mask)
    if crop is None:
        return None
    words = list(dict.fromkeys(p.object for p in outcome.trace.proposals if p.present)) or [outcome.trace.instruction]
    try:
        found = rsvp.segmenter.segment([image] * len(words), [Prompt(crop, text) for text in words])
    except SegmenterError as error:
        raise SampleError(f"stage 2 failed on the true crop: {error}") from None
    merged: BoolMask = np.zeros_like(truth.mask)
    for text, segmentation in zip(words, found, strict=True):
        instance = rsvp.instance(Proposal(text, True, Regions(), ""), crop, segmentation, image)
        if instance is not None:
            merged |= instance.mask
    return fit(merged, truth)


def true_crop(rsvp: RSVP, mask: BoolMask) -> Box | None:
    """The crop of an ideal stage 1, padded; None for an empty ``mask``."""
    height, width = mask.shape
    box = regions_box(mask_regions(mask, rsvp.config.marks), rsvp.config.marks, width, height)
    return None if box is None else box.padded(rsvp.config.padding, width, height)

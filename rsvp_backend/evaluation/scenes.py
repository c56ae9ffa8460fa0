"""Evaluate both stages on procedural scenes, where the truth is exact: each stage alone, and end to end.

One sample is one (image, instruction). Relations and superlatives count in the headline figures of level ``full``
only; at the other levels they are reported apart, in ``by_kind``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsvp_backend.evaluation.metrics import Overlap, bootstrap_interval, ciou, giou
from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import LevelName, Question, Scene, make_scene
from rsvp_backend.scenes.language import KINDS
from rsvp_backend.types import BoolMask, EmptyReason, Outcome, Prompt

PLAIN_KINDS = ("name", "function", "absent")
HEADLINE_KINDS = {"easy": PLAIN_KINDS, "crowded": PLAIN_KINDS, "full": KINDS, "small": PLAIN_KINDS}
QUESTIONS_PER_KIND = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of one instruction. Stage-2 IoUs and ``crop_recall`` are None for absent objects."""

    kind: str
    held_out: bool
    overlap: Overlap
    random_iou: float
    valid: bool
    object_exact: bool
    absent_said: bool
    crop_recall: float | None
    crop_iou: float | None
    true_crop_iou: float | None
    wrong_text_iou: float | None
    seconds: float
    zooms: int


def evaluate(
    rsvp: RSVP, level: LevelName, seeds: Iterable[int], progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run ``rsvp`` on the scenes of ``seeds``; all figures as one JSON-ready dict. ``progress`` is called per scene."""
    samples = []
    for seed in seeds:
        scene = make_scene(seed, level, questions_per_kind=QUESTIONS_PER_KIND)
        samples += [score(rsvp, scene, question) for question in scene.questions]
        progress()
    if not samples:
        raise ValueError("no seeds were given: a range such as 10000000:10000300 is expected")
    return {"level": level, "version": rsvp.version, **summarise(samples, HEADLINE_KINDS[level])}


def score(rsvp: RSVP, scene: Scene, question: Question) -> Sample:
    """All scores of one instruction on one scene."""
    started = time.perf_counter()
    outcome = rsvp(scene.image, question.instruction)
    seconds = time.perf_counter() - started
    crop_recall, crop_iou = _crop_scores(outcome, question) if question.present else (None, None)
    right, wrong = _stage2(rsvp, scene, question) if question.target is not None else (None, None)
    said = [proposal.object for proposal in outcome.trace.proposals if proposal.present]
    ious = [Overlap.of(mask, question.mask).iou for mask in scene.masks]
    return Sample(
        question.kind, question.held_out, Overlap.of(outcome.union(*scene.image.size), question.mask),
        random_iou=float(np.mean(ious)), valid=outcome.reason != EmptyReason.INVALID_ANSWER,
        object_exact=said == [question.object], absent_said=outcome.reason == EmptyReason.ABSENT,
        crop_recall=crop_recall, crop_iou=crop_iou, true_crop_iou=right, wrong_text_iou=wrong, seconds=seconds,
        zooms=sum(bool(step.raw_texts) for step in outcome.trace.zooms),
    )  # fmt: skip


def summarise(samples: list[Sample], headline: tuple[str, ...]) -> dict[str, Any]:
    """Headline figures over the kinds in ``headline``, then the same by kind and by held-out wording."""
    main = [sample for sample in samples if sample.kind in headline]
    low, high = bootstrap_interval([sample.overlap.iou for sample in main])
    rounded = _figures(main) | {"giou_ci95": [round(low, 4), round(high, 4)], "kinds": list(headline)}
    groups = {kind: [s for s in samples if s.kind == kind] for kind in KINDS}
    rounded["by_kind"] = {kind: _figures(group) for kind, group in groups.items() if group}
    rounded["by_wording"] = {
        name: _figures([s for s in main if s.held_out == flag])
        for name, flag in (("trained", False), ("held_out", True))
    }
    return rounded


def _figures(samples: list[Sample]) -> dict[str, Any]:
    present = [s for s in samples if s.kind != "absent"]
    absent = [s for s in samples if s.kind == "absent"]
    overlaps = [s.overlap for s in samples]
    values = {
        "giou": giou(overlaps), "ciou": ciou(overlaps),
        "random_object_giou": _mean(s.random_iou for s in samples),
        "stage2_iou_true_crop": _mean(s.true_crop_iou for s in present),
        "stage2_iou_wrong_text": _mean(s.wrong_text_iou for s in present),
        "object_exact": _mean(s.object_exact for s in present),
        "crop_recall": _mean(s.crop_recall for s in present),
        "crop_iou": _mean(s.crop_iou for s in present),
        "absent_recall": _mean(s.absent_said for s in absent),
        "absent_false_alarm": _mean(s.absent_said for s in present),
        "schema_valid": _mean(s.valid for s in samples),
        "seconds_per_image": _mean(s.seconds for s in samples),
        "zooms_per_image": _mean(s.zooms for s in samples),
    }  # fmt: skip
    return {"n": len(samples), **{k: None if v is None else round(float(v), 4) for k, v in values.items()}}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _crop_scores(outcome: Outcome, question: Question) -> tuple[float, float]:
    """Share of the target's pixels inside the crops, and IoU of the crops' union with the target's true region box."""
    inside: BoolMask = np.zeros_like(question.mask)
    for box in outcome.trace.crops:
        inside[box.top : box.bottom, box.left : box.right] = True
    recall = float((inside & question.mask).sum() / max(1, question.mask.sum()))
    return recall, Overlap.of(inside, _true_crop_mask(question)).iou


def _true_crop_mask(question: Question) -> BoolMask:
    rows, columns = np.flatnonzero(question.mask.any(axis=1)), np.flatnonzero(question.mask.any(axis=0))
    box: BoolMask = np.zeros_like(question.mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def _stage2(rsvp: RSVP, scene: Scene, question: Question) -> tuple[float, float]:
    """The segmenter alone on the target's true crop: IoU with the true text, and with another object's name."""
    width, height = scene.image.size
    marks = rsvp.config.marks
    box = regions_box(mask_regions(question.mask, marks), marks, width, height)
    assert box is not None  # a visible target touches some region
    box = box.padded(rsvp.config.padding, width, height)
    others = [item.phrase for index, item in enumerate(scene.layout.items) if index != question.target]
    truth = question.mask[box.top : box.bottom, box.left : box.right]
    prompts = [Prompt(box, text) for text in (question.object, others[scene.seed % len(others)])]
    found = rsvp.segmenter.segment([scene.image] * 2, prompts)
    right, wrong = (Overlap.of(segmentation.logits > 0, truth).iou for segmentation in found)
    return right, wrong

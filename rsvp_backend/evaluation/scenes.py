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

from rsvp_backend.evaluation.metrics import Overlap, bootstrap_interval, ciou, ratio_interval
from rsvp_backend.evaluation.stages import true_crop
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import LevelName, Question, Scene, make_scene
from rsvp_backend.scenes.language import KINDS
from rsvp_backend.types import BoolMask, EmptyReason, Outcome, Prompt

PLAIN_KINDS = ("name", "function", "absent")
HEADLINE_KINDS = {"easy": PLAIN_KINDS, "crowded": PLAIN_KINDS, "full": KINDS, "small": PLAIN_KINDS}
QUESTIONS_PER_KIND = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of one instruction. Stage-2 IoUs, each the mean over the objects meant, and ``crop_recall`` are None for
    absent objects; ``wrong_text_iou`` also where the scene holds no other object."""

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
    right, wrong = _stage2(rsvp, scene, question) if question.present else (None, None)
    said = [proposal.object for proposal in outcome.trace.proposals if proposal.present]
    ious = [Overlap.of(mask, question.mask).iou for mask in scene.masks]
    return Sample(
        question.kind, question.truth.held_out, Overlap.of(outcome.union(*scene.image.size), question.mask),
        random_iou=float(np.mean(ious)), valid=outcome.reason != EmptyReason.INVALID_ANSWER,
        object_exact=sorted(said) == sorted(question.objects), absent_said=outcome.reason == EmptyReason.ABSENT,
        crop_recall=crop_recall, crop_iou=crop_iou, true_crop_iou=right, wrong_text_iou=wrong, seconds=seconds,
        zooms=sum(bool(step.raw_texts) for step in outcome.trace.zooms),
    )  # fmt: skip


def summarise(samples: list[Sample], headline: tuple[str, ...]) -> dict[str, Any]:
    """Headline figures over the kinds in ``headline``, then the same by kind and by held-out wording."""
    main = [sample for sample in samples if sample.kind in headline]
    rounded = _figures(main) | {"kinds": list(headline)}
    groups = {kind: [s for s in samples if s.kind == kind] for kind in KINDS}
    rounded["by_kind"] = {kind: _figures(group) for kind, group in groups.items() if group}
    rounded["by_wording"] = {
        name: _figures([s for s in main if s.held_out == flag])
        for name, flag in (("trained", False), ("held_out", True))
    }
    return rounded


def _figures(samples: list[Sample]) -> dict[str, Any]:
    """Each figure, and under ``ci95`` its 95 % bootstrap interval over instructions."""
    present = [s for s in samples if s.kind != "absent"]
    absent = [s for s in samples if s.kind == "absent"]
    overlaps = [s.overlap for s in samples]
    measured: dict[str, list[float | None]] = {
        "giou": [one.iou for one in overlaps],
        "random_object_giou": [s.random_iou for s in samples],
        "stage2_iou_true_crop": [s.true_crop_iou for s in present],
        "stage2_iou_wrong_text": [s.wrong_text_iou for s in present],
        "object_exact": [s.object_exact for s in present],
        "crop_recall": [s.crop_recall for s in present],
        "crop_iou": [s.crop_iou for s in present],
        "absent_recall": [s.absent_said for s in absent],
        "absent_false_alarm": [s.absent_said for s in present],
        "schema_valid": [s.valid for s in samples],
        "seconds_per_image": [s.seconds for s in samples],
        "zooms_per_image": [s.zooms for s in samples],
    }
    known = {key: [float(value) for value in values if value is not None] for key, values in measured.items()}
    figures = {key: round(float(np.mean(values)), 4) if values else None for key, values in known.items()}
    intervals = {key: bootstrap_interval(values) for key, values in known.items() if values}
    if overlaps:
        figures["ciou"] = round(ciou(overlaps), 4)
        intervals["ciou"] = ratio_interval([o.intersection_px for o in overlaps], [o.union_px for o in overlaps])
    rounded = {key: [round(low, 4), round(high, 4)] for key, (low, high) in intervals.items()}
    return {"n": len(samples), **figures, "ci95": rounded}


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


def _stage2(rsvp: RSVP, scene: Scene, question: Question) -> tuple[float, float | None]:
    """The segmenter alone on each target's true crop: IoU with the true text, and with the name of another object."""
    others = [item.phrase for index, item in enumerate(scene.layout.items) if index not in question.truth.targets]
    right, wrong = [], []
    for target, text in zip(question.truth.targets, question.objects, strict=True):
        mask = scene.masks[target]
        box = true_crop(rsvp, mask)
        assert box is not None  # a visible target touches some region
        texts = [text, *others[scene.seed % len(others) :][:1]] if others else [text]
        found = rsvp.segmenter.segment([scene.image] * len(texts), [Prompt(box, one) for one in texts])
        truth = mask[box.top : box.bottom, box.left : box.right]
        ious = [Overlap.of(segmentation.logits > 0, truth).iou for segmentation in found]
        right.append(ious[0])
        wrong += ious[1:]
    return float(np.mean(right)), float(np.mean(wrong)) if wrong else None

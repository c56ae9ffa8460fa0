"""Rows -> figures: means with 95 % bootstrap intervals, and differences from the reference on the same questions.

Whole pictures are drawn for the intervals, because questions on one picture are alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rsvp_backend.evaluation.metrics import grouped_interval
from rsvp_backend.experiments.measuring import Row
from rsvp_backend.experiments.variants import Plan, Variant


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean (of cIoU: a ratio of sums) with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measure:
    """``of``: what a row adds above and below the line; None where it does not count. ``title``: in tables."""

    title: str
    of: Callable[[Row], tuple[float, float] | None]


def _mean(value: Callable[[Row], float | bool | None]) -> Callable[[Row], tuple[float, float] | None]:
    def of(row: Row) -> tuple[float, float] | None:
        known = value(row)
        return None if known is None else (float(known), 1.0)

    return of


MEASURES: dict[str, Measure] = {
    "giou": Measure("gIoU", _mean(lambda r: r.iou if r.present else None)),
    "ciou": Measure("cIoU", lambda r: (r.intersection_px, r.union_px) if r.present else None),
    "crop_recall": Measure("crop recall", _mean(lambda r: r.crop_recall)),
    "crop_share": Measure("crop, share of picture", _mean(lambda r: r.crop_share if r.present else None)),
    "regions": Measure("regions named", _mean(lambda r: r.regions if r.present else None)),
    "regions_share": Measure("named, share of picture", _mean(lambda r: r.regions_share if r.present else None)),
    "object_right": Measure("object right", _mean(lambda r: r.object_right)),
    "absent_right": Measure("absent: left empty", _mean(lambda r: None if r.present else not r.said)),
    "valid": Measure("valid answers", _mean(lambda r: r.valid)),
    "zooms": Measure("closer looks", _mean(lambda r: r.zooms)),
    "characters": Measure("characters written", _mean(lambda r: r.characters)),
}
"""gIoU and cIoU are those of questions that mean something in the picture, as nearly all of ReasonSeg's do."""


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Of one variant. ``asked``: answers in ``measures``; ``missing``: answers that could not be had.

    ``difference``: of gIoU from the reference of the same series, on the questions that both answered; ``spread``:
    standard deviation of gIoU between repeats; ``best``: gIoU if the best of the repeats were known. ``seconds``:
    median per question.
    """

    variant: Variant
    version: str
    asked: int
    missing: int
    measures: Mapping[str, Estimate]
    seconds: float
    difference: Estimate | None = None
    spread: float | None = None
    best: float | None = None


def summarise(plan: Plan, rows: Mapping[str, Sequence[Row]], questions: int) -> list[Figures]:
    """``rows`` by variant; ``questions``: how many each variant was to answer, once per repeat."""
    references = {variant.series: rows[variant.name] for variant in plan.variants if variant.value == plan.reference}
    found = []
    for variant in plan.variants:
        own = rows[variant.name]
        if own:
            reference = references.get(variant.series, []) if variant.value != plan.reference else []
            found.append(_figures(variant, own, reference, questions * variant.repeats - len(own)))
    return found


def estimate(measure: Measure, rows: Sequence[Row]) -> Estimate | None:
    """None where no row counts."""
    counted = [(pair, row.image) for row in rows if (pair := measure.of(row)) is not None]
    above, below = [pair[0] for pair, _ in counted], [pair[1] for pair, _ in counted]
    if not sum(below):
        return None
    return Estimate(sum(above) / sum(below), *grouped_interval(above, below, [image for _, image in counted]))


def difference(rows: Sequence[Row], reference: Sequence[Row]) -> Estimate | None:
    """Of the mean IoU, question by question; None where they have none in common."""
    own, other = _by_question(rows), _by_question(reference)
    images = {row.question: row.image for row in rows}
    both = [question for question in own if question in other]
    if not both:
        return None
    values = [float(np.mean(own[question]) - np.mean(other[question])) for question in both]
    interval = grouped_interval(values, [1.0] * len(values), [images[question] for question in both])
    return Estimate(float(np.mean(values)), *interval)


def _figures(variant: Variant, rows: Sequence[Row], reference: Sequence[Row], missing: int) -> Figures:
    measures = {name: estimate(measure, rows) for name, measure in MEASURES.items()}
    repeated = _by_question(rows)
    by_repeat = [[row.iou for row in rows if row.present and row.repeat == n] for n in range(variant.repeats)]
    several = variant.repeats > 1 and bool(repeated) and all(by_repeat)
    return Figures(
        variant, rows[0].version, len(rows), missing,
        {name: found for name, found in measures.items() if found is not None},
        float(np.median([row.seconds for row in rows])),
        difference(rows, reference),
        spread=float(np.std([np.mean(ious) for ious in by_repeat], ddof=1)) if several else None,
        best=float(np.mean([max(ious) for ious in repeated.values()])) if several else None,
    )  # fmt: skip


def _by_question(rows: Sequence[Row]) -> dict[str, list[float]]:
    """IoUs of the repeats, where something is meant."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.present:
            found[row.question].append(row.iou)
    return found

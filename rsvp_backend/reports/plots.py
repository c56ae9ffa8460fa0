"""The report's plots: which numbers stand in which."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rsvp_backend.reports import svg
from rsvp_backend.reports.answers import Answer, Fate, Kind
from rsvp_backend.reports.over_time import Timeline
from rsvp_backend.reports.summary import Calibration

# Kinds of answers that a mask was compared in, from the bottom up, with the fate whose colour they have.
KINDS = ((Kind.UNTOUCHED, Fate.UNTOUCHED), (Kind.EDITED, Fate.EDITED), (Kind.DELETED, Fate.DELETED),
         (Kind.MISSED, Fate.DRAWN))  # fmt: skip
IOU_BINS = 10
EDIT_EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, math.inf)


def iou_histogram(answers: Sequence[Answer]) -> str:
    """Answers by IoU, in tenths, the last with 1."""
    counts = {kind: [0] * IOU_BINS for kind, _ in KINDS}
    for answer in answers:
        if answer.iou is not None and answer.kind in counts:
            counts[answer.kind][min(int(answer.iou * IOU_BINS), IOU_BINS - 1)] += 1
    labels = [f"{n / IOU_BINS:.1f}" for n in range(IOU_BINS)]
    series = [svg.Series(str(fate), f"{kind}", counts[kind]) for kind, fate in KINDS]
    return svg.columns("How many answers have which IoU", labels, series)


def edit_histogram(answers: Sequence[Answer]) -> str:
    """Edited regions by changed pixels over those of the final mask."""
    counts = [0] * (len(EDIT_EDGES) - 1)
    for answer in answers:
        for region in answer.regions:
            if region.fate is Fate.EDITED and region.changed_px is not None and region.after_px:
                share = region.changed_px / region.after_px
                counts[next(n for n, edge in enumerate(EDIT_EDGES[1:]) if share < edge)] += 1
    labels = [f"<{edge * 100:.0f}" if edge < math.inf else "more" for edge in EDIT_EDGES[1:]]
    series = [svg.Series("edited", "edited regions", counts)]
    return svg.columns("How many edited regions changed by how much", labels, series)


def fates_over_time(timeline: Timeline, marks: Sequence[svg.Mark]) -> str:
    """Regions by what became of them."""
    series = [svg.Series(str(fate), str(fate), [g.regions.fates[fate] for g in timeline.groups]) for fate in Fate]
    return svg.columns(f"Regions by {timeline.unit}", timeline.labels, series, marks)


def iou_over_time(timeline: Timeline, marks: Sequence[svg.Mark]) -> str:
    """Mean IoU of whole answers."""
    points = [svg.Point(g.iou.mean, *g.iou.interval, g.iou.count) for g in timeline.groups]
    return svg.trend(f"Mean IoU by {timeline.unit}", timeline.labels, points, marks)


def calibration(found: Calibration) -> str:
    return svg.reliability("IoU reached over the score predicted", found.table, "score (the predicted IoU)")

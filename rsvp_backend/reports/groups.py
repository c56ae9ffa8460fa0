"""The tables of the report's page: versions, labels and annotators beside each other."""

from __future__ import annotations

from html import escape

from rsvp_backend.reports import html
from rsvp_backend.reports.answers import Fate, Kind
from rsvp_backend.reports.report import Report
from rsvp_backend.reports.summary import Group

_PREDICTED = (Fate.UNTOUCHED, Fate.EDITED, Fate.DELETED)


def versions(report: Report) -> str:
    header = ("version", "answers", "mean IoU", "IoU, 10 to 90 %", "predicted regions", *map(str, _PREDICTED), "missed",
              "empty, right")  # fmt: skip
    rows = [
        [f"v{n} <code>{escape(group.name)}</code>", str(group.answers), html.interval(group.iou),
         html.spread(group.iou), html.fates(group.regions),
         *(html.percent(group.regions.share(fate)) for fate in _PREDICTED), str(group.regions.fates[Fate.DRAWN]),
         f"{group.kinds[Kind.EMPTY_RIGHT]} of {group.empty}" if group.empty else html.UNKNOWN]
        for n, group in enumerate(report.versions, 1)
    ]  # fmt: skip
    told = html.said(
        "In the order in which people first answered to each. Versions saw different tasks: a difference between them "
        "is no proof; the gate of <code>finetune</code> compares on the same ones."
    )
    return html.card("Versions", told, html.table(header, rows, wide=(3, 4)), html.fate_legend(*_PREDICTED))


def labels(report: Report) -> str:
    header = ("label", "predicted", "mean IoU", "IoU, 10 to 90 %", "what became of them", *map(str, _PREDICTED),
              "drawn", "edit, median")  # fmt: skip
    rows = [
        [escape(name), str(tally.predicted), html.interval(tally.iou), html.spread(tally.iou), html.fates(tally),
         *(html.percent(tally.share(fate)) for fate in _PREDICTED), str(tally.fates[Fate.DRAWN]),
         html.percent(tally.changed_share.median)]
        for name, tally in report.labels
    ]  # fmt: skip
    told = html.said(
        "Region by region, deleted ones with IoU 0; by the predicted label, drawn ones by their own. Edits: changed "
        "pixels over the image's."
    )
    return html.card("Labels", told, html.table(header, rows, wide=(3, 4)))


def annotators(report: Report) -> str:
    header = ("annotator", "answers", "mean IoU", "what became of predicted regions", *map(str, _PREDICTED), "drawn",
              "time, median")  # fmt: skip
    rows = [_annotator(group) for group in report.annotators]
    told = html.said("People get different tasks and have different standards: look for outliers, do not rank.")
    return html.card("Annotators", told, html.table(header, rows, wide=(3,)))


def _annotator(group: Group) -> list[str]:
    regions = group.regions
    shares = (html.percent(regions.share(fate)) for fate in _PREDICTED)
    return [
        escape(group.name), str(group.answers), html.interval(group.iou), html.fates(regions), *shares,
        str(regions.fates[Fate.DRAWN]), html.seconds(group.lead_s.median),
    ]  # fmt: skip

"""A run's summary as markdown, beside what is published for the data set; its samples as rows of a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rsvp_backend.evaluation import published
from rsvp_backend.evaluation.records import Record
from rsvp_backend.evaluation.stages import SIGNATURES

_NAMES = {
    "ap": "mask AP", "ap50": "AP50", "ap75": "AP75", "giou": "gIoU", "ciou": "cIoU", "miou": "mIoU",
    "box_accuracy": "box accuracy@0.5", "box_miou": "box mIoU",
}  # fmt: skip
_DIAGNOSIS = {
    "right": "right (IoU of 0.5 or more, or rightly nothing)",
    "stage1": "stage 1 wrong", "stage2": "stage 2 wrong", "both": "both wrong",
    "false_localization": "signature: false localization", "incomplete_regions": "signature: incomplete regions",
    "suboptimal_mask": "signature: suboptimal mask", "empty_output": "signature: empty output",
    "object_right": "stage 1: object named rightly", "absent_recall": "stage 1: absent, and said so",
    "absent_false_alarm": "stage 1: there, but called absent", "crop_recall": "stage 1: crop recall",
    "crop_share": "stage 1: crop's share of the image", "stage2_iou_true_crop": "stage 2: IoU on the true crop",
}  # fmt: skip
_PROBLEMS_SHOWN = 20


def markdown(summary: Mapping[str, Any], name: str) -> str:
    """``name``: of the data set on the command line, by which published figures are found."""
    split = str(summary["split"])
    parts = [f"# {summary['dataset']}, {split}: {summary['n']} samples"]
    if summary["partial"]:
        parts.append(f"**Partial result:** {'; '.join(summary['partial_because'])}.")
    parts.append(f"Model `{summary['version']}`, convention `{summary['convention']}`. Percent; 95 % intervals.")
    rows = published.rows(name, split)
    parts.append(_scores({"this run": summary}, rows))
    if "ap_by_set" in summary:
        parts.append(_table(["set", "mask AP"], [[one, _percent(ap)] for one, ap in summary["ap_by_set"].items()]))
    for field, groups in summary["by_group"].items():
        extra = [row for value in groups for row in _named(published.group_rows(name, split, value), value)]
        parts += [f"## By {field}", _scores(groups, extra)]
    parts += ["## What went wrong", diagnosis({"all": summary, **_flat(summary["by_group"])})]
    if summary["problems"]:
        parts += ["## Left out", *_problems(summary["problems"])]
    sources = dict.fromkeys(f"{row.name}: {row.source}." for row in rows)
    return "\n\n".join([*parts, *sources]) + "\n"


def diagnosis(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Stages and signatures of each of ``columns``; rows without any value are left out."""
    rows = []
    for key, text in _DIAGNOSIS.items():
        values = [column["diagnosis"].get(key) for column in columns.values()]
        if any(value is not None for value in values):
            rows.append([text, *(_percent(value) for value in values)])
    return _table(["", *columns], rows)


def sample_rows(records: Sequence[Record]) -> str:
    """CSV: one row for each sample, the four failure signatures as columns of 0 and 1."""
    stream = io.StringIO()
    fields = ("crop_recall", "crop_share", "true_crop_iou", "present", "said_present", "object_right")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", "instruction", "iou", "box_iou", *fields, "wrong", *SIGNATURES, "why", "seconds"))
    for record in records:
        stages = record.stages
        measured = [_cell(value) for value in (record.fit, record.box_iou, *(getattr(stages, f) for f in fields))]
        flags = [int(stages.signature == name) for name in SIGNATURES]
        writer.writerow((record.id, record.instruction, *measured, stages.wrong, *flags, stages.why, record.seconds))
    return stream.getvalue()


def _cell(value: float | bool | None) -> object:
    return "" if value is None else int(value) if isinstance(value, bool) else round(value, 4)


def _scores(own: Mapping[str, Mapping[str, Any]], rows: Sequence[published.Row]) -> str:
    keys = [key for key in _NAMES if any(key in column for column in own.values())]
    at = [x for column in own.values() for x in column.get("precision_at", {})]
    thresholds = list(dict.fromkeys(at))
    lines = []
    for name, column in own.items():
        cells = [_with_interval(column, key) for key in keys]
        cells += [_percent(column.get("precision_at", {}).get(x)) for x in thresholds]
        lines.append([name, str(column["n"]), *cells])
    for row in rows:
        lines.append(
            [f"{row.name} (published)", "", *(_plain(row.values.get(key)) for key in keys), *("" for _ in thresholds)]
        )
    return _table(["", "n", *(_NAMES[key] for key in keys), *(f"P@{x}" for x in thresholds)], lines)


def _named(rows: Sequence[published.Row], value: str) -> list[published.Row]:
    return [published.Row(f"{row.name}, {value}", row.values, row.source) for row in rows]


def _flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{field}: {value}": column for field, values in groups.items() for value, column in values.items()}


def _problems(lines: Sequence[str]) -> list[str]:
    shown = [f"- {line}" for line in lines[:_PROBLEMS_SHOWN]]
    more = [f"- and {len(lines) - _PROBLEMS_SHOWN} more, in summary.json"] if len(lines) > _PROBLEMS_SHOWN else []
    return ["\n".join([*shown, *more])]


def _with_interval(column: Mapping[str, Any], key: str) -> str:
    text, interval = _percent(column.get(key)), column.get(f"{key}_ci95")
    if not interval or None in interval:
        return text
    return f"{text} ({_percent(interval[0])} to {_percent(interval[1])})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])

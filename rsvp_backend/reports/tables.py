"""The measured numbers as CSV: one line per answer, one per region."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from rsvp_backend.reports.answers import Answer, Fate

_Cell = str | int | float | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with these, a spreadsheet computes a text in place of showing it
ANSWERS = (
    "task", "annotation", "annotator", "submitted", "version", "kind", "iou", "intersection_px", "union_px",
    *(str(fate) for fate in Fate), "lead_s",
)  # fmt: skip
REGIONS = (
    "task", "annotation", "annotator", "version", "label", "fate", "relabelled", "score", "iou", "image_px",
    "before_px", "after_px", "added_px", "removed_px", "changed_px",
)  # fmt: skip


def answers_csv(answers: Iterable[Answer], names: dict[int, str]) -> str:
    """``submitted``: UTC, ISO 8601; ``lead_s``: seconds; a cell is empty where a number is not known."""
    return _csv(ANSWERS, (_answer(answer, names) for answer in answers))


def regions_csv(answers: Iterable[Answer], names: dict[int, str]) -> str:
    """Pixels of the image; see `answers.Judged`."""
    return _csv(REGIONS, (row for answer in answers for row in _regions(answer, names)))


def _answer(one: Answer, names: dict[int, str]) -> Sequence[_Cell]:
    submitted = one.submitted.isoformat(timespec="seconds") if one.submitted else None
    pixels = (one.overlap.intersection_px, one.overlap.union_px) if one.overlap else (None, None)
    fates = [one.count(fate) for fate in Fate]
    who = _who(one, names)
    return (
        one.task, one.annotation, who, submitted, one.version, str(one.kind), one.iou, *pixels, *fates, one.lead_s,
    )  # fmt: skip


def _regions(one: Answer, names: dict[int, str]) -> Iterable[Sequence[_Cell]]:
    for region in one.regions:
        yield (
            one.task, one.annotation, _who(one, names), one.version, region.label, str(region.fate),
            int(region.relabelled), region.score, region.iou, region.image_px, region.before_px, region.after_px,
            region.added_px, region.removed_px, region.changed_px,
        )  # fmt: skip


def _who(one: Answer, names: dict[int, str]) -> _Cell:
    return None if one.annotator is None else names.get(one.annotator, one.annotator)


def _csv(header: Sequence[str], rows: Iterable[Sequence[_Cell]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _safe(cell: _Cell) -> _Cell:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

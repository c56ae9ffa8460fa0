"""Figures -> a CSV, a markdown table beside the paper's figures, and one JSON object."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from rsvp_backend.experiments.figures import MEASURES, Estimate, Figures
from rsvp_backend.experiments.paper import NONE, PAPER
from rsvp_backend.experiments.variants import Plan

COLUMNS: dict[str, tuple[str, ...]] = {
    "grid": ("ciou", "crop_recall", "crop_share", "regions"),
    "mllm": ("ciou", "crop_recall", "object_right", "absent_right", "valid"),
    "padding": ("ciou", "crop_recall", "crop_share"),
    "connector": ("ciou", "absent_right"),
    "encoding": ("ciou", "crop_recall", "regions", "regions_share", "characters"),
    "zoom": ("ciou", "crop_recall", "crop_share", "zooms"),
    "temperature": ("ciou", "crop_recall", "object_right", "absent_right", "valid"),
    "robustness": ("ciou", "crop_recall", "object_right", "absent_right"),
}
"""Of each experiment's table, besides gIoU."""


def to_dict(plan: Plan, figures: Sequence[Figures], about: dict[str, Any]) -> dict[str, Any]:
    """All of it, JSON-ready. ``about``: what was asked."""
    variants = [
        {
            "variant": one.variant.name, "series": one.variant.series, "value": one.variant.value,
            "version": one.version, "asked": one.asked, "missing": one.missing, "repeats": one.variant.repeats,
            "measures": {name: _rounded(found) for name, found in one.measures.items()},
            "difference": None if one.difference is None else _rounded(one.difference),
            "spread": one.spread, "best": one.best, "median_seconds": round(one.seconds, 4),
        }
        for one in figures
    ]  # fmt: skip
    beside = PAPER.get(plan.name, NONE)
    return {
        "experiment": plan.name, "varied": plan.varied, "reference": plan.reference, **about, "variants": variants,
        "notes": list(plan.notes), "paper": asdict(beside),
    }  # fmt: skip


def to_csv(figures: Sequence[Figures]) -> str:
    """A line per variant: every measure with the ends of its interval."""
    buffer = io.StringIO()
    estimates = [*MEASURES, "difference"]
    ends = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["series", "value", "version", "asked", "missing", *ends, "spread", "best", "median_seconds"])
    for one in figures:
        found: dict[str, Estimate | None] = {**dict.fromkeys(estimates), **one.measures, "difference": one.difference}
        values = [v for name in estimates for v in _ends(found[name])]
        variant = one.variant
        rest = [_plain(one.spread), _plain(one.best), _plain(one.seconds)]
        writer.writerow([variant.series, variant.value, one.version, one.asked, one.missing, *values, *rest])
    return buffer.getvalue()


def to_markdown(plan: Plan, figures: Sequence[Figures], about: dict[str, Any]) -> str:
    """The table, then the paper's, then what the two say together."""
    columns = [name for name in COLUMNS[plan.name] if any(name in one.measures for one in figures)]
    repeated = any(one.spread is not None for one in figures)
    who = [] if plan.name == "mllm" else ["stage 1"]  # there it is what is varied
    heads = [
        *who, plan.varied, "gIoU (95 %)", f"against {plan.reference}", *(MEASURES[name].title for name in columns),
        *(["spread", "best of repeats"] if repeated else []), "seconds",
    ]  # fmt: skip
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for one in figures:
        extra = [_shown(one.spread), _shown(one.best)] if repeated else []
        names = [one.variant.series, one.variant.value][-1 - len(who) :]
        lines.append(
            _line([
                *names, _interval(one.measures.get("giou")), _signed(one),
                *(_shown(found.value if (found := one.measures.get(name)) else None) for name in columns), *extra,
                f"{one.seconds:.3f}",
            ])
        )  # fmt: skip
    asked = ", ".join(f"{name} {value}" for name, value in about.items())
    parts = ["\n".join(lines), f"{asked}; gIoU and cIoU where something is meant."]
    missing = [f"{one.variant.name}: {one.missing} answers are missing." for one in figures if one.missing]
    if missing:
        parts.append("PARTIAL. " + " ".join(missing))
    if plan.name == "robustness":
        parts.append(_over_changes(plan, figures))
    if plan.notes:
        parts.append("\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join([*parts, _paper(plan.name)]) + "\n"


def _paper(name: str) -> str:
    beside = PAPER.get(name, NONE)
    if not beside.rows:
        return beside.comparable
    lines = ["| the paper | gIoU | cIoU |", "|---|---|---|"]
    lines += [_line([row.what, _percent(row.giou), _percent(row.ciou)]) for row in beside.rows]
    return "\n".join(lines) + f"\n\n{beside.comparable}"


def _over_changes(plan: Plan, figures: Sequence[Figures]) -> str:
    """Mean, spread and worst of each series' gIoU over what was changed."""
    lines = ["| stage 1 | as it is | mean over changes | standard deviation | worst |", "|---|---|---|---|---|"]
    for series in dict.fromkeys(one.variant.series for one in figures):
        own = {one.variant.value: one.measures["giou"].value for one in figures
               if one.variant.series == series and "giou" in one.measures}  # fmt: skip
        changed = {value: giou for value, giou in own.items() if value != plan.reference}
        if len(changed) > 1:
            worst = min(changed, key=lambda value: changed[value])
            values = list(changed.values())
            cells = [_shown(own.get(plan.reference)), _shown(fmean(values)), _shown(stdev(values))]
            lines.append(_line([series, *cells, f"{worst}: {changed[worst]:.3f}"]))
    return "\n".join(lines)


def _signed(one: Figures) -> str:
    found = one.difference
    return "" if found is None else f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _interval(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "not published" if value is None else f"{value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ends(found: Estimate | None) -> tuple[str, str, str]:
    return ("", "", "") if found is None else (_plain(found.value), _plain(found.low), _plain(found.high))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _rounded(found: Estimate) -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(found).items()}

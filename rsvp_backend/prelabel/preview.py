"""``--dry-run``: what a run would do, and how long it would take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from rich.console import Console

from rsvp_backend.answers import shown_uri
from rsvp_backend.jobs.job import one_line
from rsvp_backend.metrics import meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.running import Result, Run, Steps
from rsvp_backend.prelabel.steps import Answered, Common, Work

SHOWN, TRIED = 10, 16
_FIELD_CHARS = 80


def preview(out: Console, rsvp: RSVP, steps: Steps, works: Iterator[Work], total: int, as_json: bool) -> int:
    """Print it; exit status 0. The first tasks are computed and thrown away, where that costs no calls."""
    first = list(islice(works, TRIED))
    seconds = None if meter_of(rsvp.reasoner) is not None else _seconds_a_task(rsvp, steps, first)
    figures: dict[str, Any] = {
        "version": rsvp.version,
        "tasks": total,
        "seconds": None if seconds is None else round(seconds * total, 1),
        "first": [_shown(work, steps.common) for work in first[:SHOWN]],
    }
    if as_json:
        out.out(json.dumps({"dry_run": True, **figures}), highlight=False)
        return 0
    out.print(f"{total} tasks lack a prediction of {rsvp.version}", markup=False)
    for one in figures["first"]:
        out.print(f"  {one['task']}: {one['instruction']}  {one['image']}", markup=False)
    if total > SHOWN:
        out.print(f"  and {total - SHOWN} more", markup=False)
    if seconds is not None:
        out.print(f"about {seconds * total:.0f} s, by the first {len(first)} of them", markup=False)
    elif first:
        out.print("how long it would take is not tried: that would cost calls to the reasoner", markup=False)
    out.print("nothing was stored (--dry-run)", markup=False)
    return 0


def _seconds_a_task(rsvp: RSVP, steps: Steps, works: list[Work]) -> float | None:
    """By the slowest stage; None without a task that could be answered."""

    def forgotten(answered: Answered) -> Result:
        return Result(answered.work.key, "new", {})

    run = Run(rsvp, replace(steps, encode=forgotten, store=lambda results: results))
    report = run.over(works, lambda _: None)
    if not report.states["new"]:
        return None
    return max(clock.busy_s / clock.items / clock.workers for clock in run.line.clocks.values() if clock.items)


def _shown(work: Work, common: Common) -> dict[str, str]:
    data = work.task.get("data") or {}
    field = common.instruction_field or common.config.instruction_field or "instruction"
    instruction = str(data.get(field) or common.default_instruction or "")
    return {
        "task": work.key,
        "instruction": one_line(instruction, _FIELD_CHARS),
        "image": one_line(shown_uri(str(data.get(common.config.image_field) or "")), _FIELD_CHARS),
    }

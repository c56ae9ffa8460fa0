"""The pages of /jobs. Every text of a job is escaped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from rsvp_backend.jobs import plot
from rsvp_backend.jobs.job import Job, State
from rsvp_backend.jobs.store import Curve
from rsvp_backend.pages import layout

SHOWN = 50
_NOTABLE = 0.005
_MEASURED = (("held_out", "IoU on held-out corrections"), ("replay", "IoU on earlier data"))
_FORM = (
    '<form class="fields" data-post="jobs"><label>Project\'s id<input name="project" type="number" min="1" required>'
    '</label><button class="main">Start a lesson</button></form>'
)


def all_jobs(
    jobs: Sequence[Job], works: bool, lacking: str | None, versions: str = "", curves: dict[int, Curve] | None = None
) -> str:
    """The newest `SHOWN` jobs and all that have not ended. ``versions``: their sections, HTML; ``curves``: by job."""
    shown = [job for index, job in enumerate(jobs) if index < SHOWN or not job.state.ended]
    notes = [escape(lacking)] if lacking else []
    if not lacking and not works:
        notes.append("No worker runs, so nothing is begun: start <code>rsvp-backend worker</code>.")
    empty = '<p class="dim">Nothing yet. A lesson is started here, or by <i>Start Training</i> in Label Studio.</p>'
    cards = "".join(_card(job, "jobs/", (curves or {}).get(job.id, ())) for job in shown)
    body = f"{layout.notes(notes)}{cards or ('' if lacking else empty)}{versions}"
    return _page("Jobs", "Jobs", "" if lacking else _FORM, body, "")


def one_job(job: Job, lines: Sequence[str], works: bool, curve: Curve = ()) -> str:
    """One job with the last lines of its log."""
    log = escape("\n".join(lines)) or '<span class="dim">nothing yet</span>'
    notes = [] if works or job.state.ended else ["No worker runs: start <code>rsvp-backend worker</code>."]
    log = f'<h3 id="log">Log (times are UTC)</h3><pre tabindex="0" role="region" aria-labelledby="log">{log}</pre>'
    body = f"{layout.notes(notes)}{_card(job, '', curve)}{log}"
    return _page(f"Job {job.id}", f'<a href="../jobs">Jobs</a> / {job.id}', "", body, "../")


def _page(title: str, heading: str, form: str, body: str, root: str) -> str:
    """What is in ``#live`` is kept fresh."""
    main = f'{form}<div id="live">{body}</div>'
    return layout.page(title, heading, main, here="jobs", root=root, script="jobs.js")


def _card(job: Job, folder: str, curve: Curve) -> str:
    """``folder``: where the job's own address is, as seen from the page."""
    parts = [_top(job, folder)]
    if job.state is State.RUNNING:
        parts.append(_progress(job))
    elif job.text and job.state is not State.DONE:
        parts.append(f'<p class="times">{escape(job.text)}</p>')
    if job.error:
        parts.append(f'<p class="error">{escape(job.error)}</p>')
    if curve and (job.state is State.RUNNING or not folder):
        parts.append(plot.curves(curve, job.total))
    if job.result is not None:
        parts.append(_result(dict(job.result)))
    parts.append(f'<p class="times">{_times(job)}</p>')
    return f'<section class="card">{"".join(parts)}</section>'


def _top(job: Job, folder: str) -> str:
    name = f"Job {job.id}, project {job.project}"
    linked = f'<a href="jobs/{job.id}">{name}</a>' if folder else name
    state = "cancelling" if job.cancelling else str(job.state)
    button = "" if job.state.ended or job.cancelling else _button(job, folder)
    return (
        f'<div class="top"><h2>{linked}</h2><span class="state {job.state}">{state}</span>'
        f'<span class="why">{escape(job.why)}</span>{button}</div>'
    )


def _button(job: Job, folder: str) -> str:
    name = f"Cancel job {job.id}"
    return f'<button id="cancel-{job.id}" data-post="{folder}{job.id}/cancel" aria-label="{name}">Cancel</button>'


def _progress(job: Job) -> str:
    stage = escape(job.stage or "beginning")
    known = f' value="{min(max(job.done, 0), job.total)}" max="{job.total}"' if job.total else ""
    words = [f"<b>{stage}</b>"]
    words += [f"<span>{job.done} of {job.total}</span>"] if job.total else []
    words += [f'<span class="dim">{escape(job.text)}</span>'] if job.text else []
    bar = f'<progress{known} aria-label="Job {job.id}: {stage}"></progress>'
    return f'{bar}<div class="progress">{"".join(words)}</div>'


def _result(lesson: dict[str, Any]) -> str:
    """What became of the lesson, see `learning.Lesson`."""
    version, scores = lesson.get("version"), lesson.get("scores") or {}
    end = "Nothing was learned."
    if version:
        kept = "is promoted" if lesson.get("promoted") else "is kept as a candidate"
        end = f"<b>{escape(str(version))}</b> {kept}, from {escape(str(lesson.get('corrections')))} corrections."
    rows = "".join(_row(title, scores.get(f"{name}_before"), scores.get(f"{name}_after")) for name, title in _MEASURED)
    head = "".join(f'<th scope="col" class="number">{name}</th>' for name in ("before", "after", "gain"))
    table = f'<table class="short"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>' if rows else ""
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in _lines(lesson))
    told = f'<ul class="lines">{lines}</ul>' if lines else ""
    return f'<p class="times">{end}</p>{table}{told}'


def _lines(lesson: dict[str, Any]) -> Iterable[object]:
    yield from lesson.get("reasons") or ()
    yield from lesson.get("notes") or ()
    yield from str(lesson.get("reading") or "").splitlines()


def _row(title: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    gain = after - before
    better = "up" if gain > _NOTABLE else "down" if gain < -_NOTABLE else ""
    cells = f'<td class="number">{before:.3f}</td><td class="number">{after:.3f}</td>'
    return f'<tr><th scope="row">{title}</th>{cells}<td class="number {better}">{gain:+.3f}</td></tr>'


def _times(job: Job) -> str:
    """In words; the day is told where it is another one than before."""
    told = [("asked for", job.created)]
    if job.state is State.QUEUED and job.due > time.time():
        told.append(("begins", job.due))
    told += [("begun", job.started)] if job.started is not None else []
    told += [("ended", job.ended)] if job.ended is not None else []
    days = [None, *(_utc(when).date() for _, when in told)]
    parts = [f"{word} {_at(when, days[i] != days[i + 1])}" for i, (word, when) in enumerate(told)]
    if job.ended is not None and job.started is not None:
        parts.append(f"took {_span(job.ended - job.started)}")
    if job.resumed:
        parts.append(f"resumed {job.resumed} times" if job.resumed > 1 else "resumed once")
    return " · ".join(parts)


def _at(when: float, with_day: bool) -> str:
    found = _utc(when)
    shown = f"{found:%Y-%m-%d %H:%M:%S} UTC" if with_day else f"{found:%H:%M:%S}"
    return f'<time datetime="{found.isoformat(timespec="seconds")}">{shown}</time>'


def _utc(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC)


def _span(seconds: float) -> str:
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"

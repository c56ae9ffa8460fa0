"""The pages of /jobs: self-contained HTML. Every text of a job is escaped; scripts other than ours do not run."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from rsvp_backend.jobs.job import Job, State

SHOWN = 50
_NOTABLE = 0.005
_MEASURED = (("held_out", "IoU on held-out corrections"), ("replay", "IoU on earlier data"))


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def policy() -> str:
    """The page's Content-Security-Policy: our script and style, and requests to this server."""
    script, style = (_digest(_part(name)) for name in ("page.js", "page.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; style-src-attr 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def all_jobs(jobs: Sequence[Job], works: bool, lacking: str | None) -> str:
    """The newest `SHOWN` jobs and all that have not ended."""
    shown = [job for index, job in enumerate(jobs) if index < SHOWN or not job.state.ended]
    form = (
        '<form data-post="jobs"><label for="project">Project</label>'
        '<input id="project" name="project" type="number" min="1" required placeholder="id">'
        '<button class="main">Start a lesson</button></form>'
    )
    notes = [escape(lacking)] if lacking else []
    if not lacking and not works:
        notes.append("No worker runs, so nothing is begun: start <code>rsvp-backend worker</code>.")
    empty = '<p class="dim">Nothing yet. A lesson is started here, or by <i>Start Training</i> in Label Studio.</p>'
    cards = "".join(_card(job, "jobs/") for job in shown) or ("" if lacking else empty)
    return _page("Jobs", "Jobs", "" if lacking else form, _notes(notes) + cards)


def one_job(job: Job, lines: Sequence[str], works: bool) -> str:
    """One job with the last lines of its log."""
    log = escape("\n".join(lines)) or '<span class="dim">nothing yet</span>'
    notes = [] if works or job.state.ended else ["No worker runs: start <code>rsvp-backend worker</code>."]
    body = f"{_notes(notes)}{_card(job, '')}<h3>Log (times are UTC)</h3><pre>{log}</pre>"
    return _page(f"Job {job.id}", f'<a href="../jobs">Jobs</a> / {job.id}', "", body)


def _page(title: str, heading: str, form: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} - rsvp-backend</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        '<noscript><meta http-equiv="refresh" content="5"></noscript>'
        f"<style>{_part('page.css')}</style></head><body><header><h1>{heading}</h1>{form}"
        f'<p id="said" role="alert"></p></header><main>{body}</main><script>{_part("page.js")}</script></body></html>'
    )


def _card(job: Job, folder: str) -> str:
    """``folder``: where the job's own address is, as seen from the page."""
    parts = [_top(job, folder)]
    if job.state is State.RUNNING:
        parts.append(_progress(job))
    elif job.text and job.state is not State.DONE:
        parts.append(f'<p class="times">{escape(job.text)}</p>')
    if job.error:
        parts.append(f'<p class="error">{escape(job.error)}</p>')
    if job.result is not None:
        parts.append(_result(dict(job.result)))
    parts.append(f'<p class="times">{_times(job)}</p>')
    return f'<section class="card">{"".join(parts)}</section>'


def _top(job: Job, folder: str) -> str:
    name = f"Job {job.id}, project {job.project}"
    linked = f'<a href="jobs/{job.id}">{name}</a>' if folder else name
    state = "cancelling" if job.cancelling else str(job.state)
    button = "" if job.state.ended or job.cancelling else _button(f"{folder}{job.id}/cancel")
    return (
        f'<div class="top"><h2>{linked}</h2><span class="state {job.state}">{state}</span>'
        f'<span class="why">{escape(job.why)}</span>{button}</div>'
    )


def _button(address: str) -> str:
    return f'<button data-post="{address}">Cancel</button>'


def _progress(job: Job) -> str:
    bar = '<div class="bar unknown"><i></i></div>'
    if job.total:
        share = min(max(job.done / job.total, 0.0), 1.0)
        told = f'role="progressbar" aria-valuenow="{share:.0%}"'.replace("%", "")
        bar = f'<div class="bar" {told}><i style="width:{share:.1%}"></i></div>'
    words = [f"<b>{escape(job.stage or 'beginning')}</b>"]
    words += [f"<span>{job.done} of {job.total}</span>"] if job.total else []
    words += [f'<span class="dim">{escape(job.text)}</span>'] if job.text else []
    return f'{bar}<div class="progress">{"".join(words)}</div>'


def _result(lesson: dict[str, Any]) -> str:
    """What became of the lesson, see `learning.Lesson`."""
    version, scores = lesson.get("version"), lesson.get("scores") or {}
    end = "Nothing was learned."
    if version:
        kept = "is promoted" if lesson.get("promoted") else "is kept as a candidate"
        end = f"<b>{escape(str(version))}</b> {kept}, from {escape(str(lesson.get('corrections')))} corrections."
    rows = "".join(_row(title, scores.get(f"{name}_before"), scores.get(f"{name}_after")) for name, title in _MEASURED)
    table = f"<table><tr><th></th><th>before</th><th>after</th><th>gain</th></tr>{rows}</table>" if rows else ""
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in _lines(lesson))
    return f'<p class="times">{end}</p>{table}{f"<ul>{lines}</ul>" if lines else ""}'


def _lines(lesson: dict[str, Any]) -> Iterable[object]:
    yield from lesson.get("reasons") or ()
    yield from lesson.get("notes") or ()
    yield from str(lesson.get("reading") or "").splitlines()


def _row(title: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    gain = after - before
    better = "up" if gain > _NOTABLE else "down" if gain < -_NOTABLE else ""
    return f'<tr><th>{title}</th><td>{before:.3f}</td><td>{after:.3f}</td><td class="{better}">{gain:+.3f}</td></tr>'


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


def _notes(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

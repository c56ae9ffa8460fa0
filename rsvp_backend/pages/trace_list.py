"""The list of /traces: one line per task that was answered, narrowed down by a form."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

from rsvp_backend.pages import layout
from rsvp_backend.trace_summary import EMPTY, FOUND, Asked, Summary
from rsvp_backend.types import EmptyReason

PER_PAGE = 50
_LONGEST = 90
_COLUMNS = ("When (UTC)", "Outcome", "Instruction", "Score", "Project", "Task", "Seconds", "Version")


def render(summaries: Sequence[Summary], asked: Asked, number: int, kept: str) -> str:
    """``summaries``: all that there are, newest first; ``number``: of the page, from 1; ``kept``: where and for how
    long, in words."""
    found = asked.narrowed(summaries)
    pages = max(1, -(-len(found) // PER_PAGE))
    number = min(number, pages)
    shown = found[(number - 1) * PER_PAGE : number * PER_PAGE]
    main = f"{_form(summaries, asked)}{_told(len(found), len(summaries))}{_table(shown)}{_pager(asked, number, pages)}"
    return layout.page("Traces", "Traces", f'{main}<p class="dim small">{escape(kept)}</p>', here="traces")


def _form(summaries: Sequence[Summary], asked: Asked) -> str:
    versions = sorted({one.version for one in summaries if one.version} | ({asked.version} - {""}))
    reasons = {FOUND: "a mask", EMPTY: "nothing, for any reason"} | {
        str(reason): f"nothing: {reason.replace('_', ' ')}" for reason in EmptyReason
    }
    return (
        '<form class="card fields" method="get" aria-label="Which traces">'
        f"<label>Outcome{_select('reason', reasons, asked.reason)}</label>"
        f'<label>Project<input name="project" value="{escape(asked.project)}" inputmode="numeric"></label>'
        f'<label>Task<input name="task" value="{escape(asked.task)}"></label>'
        f'<label class="wide">Version{_select("version", dict(zip(versions, versions, strict=True)), asked.version)}'
        '</label><button class="main">Show</button><a class="button" href="traces">Reset</a></form>'
    )


def _select(name: str, options: dict[str, str], chosen: str) -> str:
    rows = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in ({"": "any"} | options).items()
    )
    return f'<select name="{name}">{rows}</select>'


def _told(found: int, total: int) -> str:
    if not total:
        return '<p class="note">Nothing was asked yet: retrieve predictions in Label Studio, or try the playground.</p>'
    order = "the newest first" if found else "none fits"
    return f'<p class="dim" role="status">{found} of {total} traces, {order}</p>'


def _table(shown: Sequence[Summary]) -> str:
    if not shown:
        return ""
    head = "".join(f'<th scope="col"{_number(name)}>{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(one) for one in shown)
    return (
        '<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Traces"><table class="traces">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _row(one: Summary) -> str:
    asked = one.instruction if len(one.instruction) <= _LONGEST else f"{one.instruction[: _LONGEST - 1]}…"
    outcome = f"{one.masks} mask{'s' if one.masks > 1 else ''}" if one.reason == FOUND else one.reason.replace("_", " ")
    score = "" if one.score is None else f"{one.score:.2f}"
    return (
        f'<tr><td class="when"><a href="traces/{escape(one.id)}"><span>{escape(one.time[:10])}</span> '
        f"<span>{escape(one.time[11:19])}</span></a>"
        f'</td><td class="name {"found" if one.reason == FOUND else "error"}">{escape(outcome)}</td>'
        f'<td class="text">{escape(asked) or _dim("none")}</td>'
        f'<td class="number">{score}</td><td>{escape(one.project)}</td><td>{escape(one.task)}</td>'
        f'<td class="number">{one.seconds:.2f}</td><td class="when small"><span>{escape(one.version)}</span></td></tr>'
    )


def _pager(asked: Asked, number: int, pages: int) -> str:
    if pages == 1:
        return ""
    newer = _to(asked, number - 1, "Newer", "prev") if number > 1 else ""
    older = _to(asked, number + 1, "Older", "next") if number < pages else ""
    return f'<nav class="pager" aria-label="Pages of traces">{newer}<span>page {number} of {pages}</span>{older}</nav>'


def _to(asked: Asked, number: int, text: str, rel: str) -> str:
    known = {"reason": asked.reason, "project": asked.project, "task": asked.task, "version": asked.version}
    query = urlencode({name: value for name, value in known.items() if value} | {"page": number})
    return f'<a rel="{rel}" href="traces?{escape(query)}">{text}</a>'


def _number(name: str) -> str:
    return ' class="number"' if name in ("Score", "Seconds") else ""


def _dim(text: str) -> str:
    return f'<span class="dim">{text}</span>'

"""A report -> one HTML file that needs nothing else: no script, no request, dark and light, small and large screens."""

from __future__ import annotations

from html import escape
from string import Template

from rsvp_backend import __version__
from rsvp_backend.reports import groups, html, plots, sections
from rsvp_backend.reports.answers import Fate, Kind
from rsvp_backend.reports.reading import not_comparable
from rsvp_backend.reports.report import Report


def page(report: Report) -> str:
    """The whole file."""
    project = f"{report.project.title} (project {report.project.id})"
    return Template(html.part("page.html")).substitute(
        title=escape(f"{project}: predictions in people's hands"),
        style=html.part("page.css"),
        heading=escape(f"{report.project.title}: predictions in people's hands"),
        summary=_summary(report),
        notes="".join(f'<p class="note">{note}</p>' for note in _notes(report)),
        body=_body(report),
        made_at=f"{report.made_at:%Y-%m-%d %H:%M}",
        version=escape(__version__),
    )


def headline(report: Report) -> list[str]:
    """The report in a few lines of plain text."""
    whole, regions, saved = report.all, report.all.regions, report.saved
    lines = [f"project {report.project.id}, {report.project.title}: "
             f"{html.counted(whole.answers, 'answer')} on {html.counted(whole.tasks, 'task')}"]  # fmt: skip
    if whole.iou.count:
        low, high = whole.iou.interval
        lines.append(f"mean IoU {whole.iou.mean:.3f} ({low:.3f} to {high:.3f}) over {whole.iou.count} answers")
    if regions.predicted:
        shares = ", ".join(f"{regions.fates[fate]} {fate} ({regions.share(fate):.0%})"
                           for fate in Fate if fate is not Fate.DRAWN)  # fmt: skip
        lines.append(f"of {regions.predicted} predicted regions {shares}; {regions.fates[Fate.DRAWN]} drawn by hand")
    if whole.empty:
        lines.append(f"of {whole.empty} empty predictions {whole.kinds[Kind.EMPTY_RIGHT]} were right")
    if saved.known:
        low_s, high_s = (edge * saved.assisted / 60 for edge in saved.interval_s)
        lines.append(f"minutes saved: {saved.total_s / 60:.0f} ({low_s:.0f} to {high_s:.0f}), "
                     f"{saved.per_answer_s:.0f} s for each of {saved.assisted} answers")  # fmt: skip
    elif whole.answers:
        lines.append(f"minutes saved: not known, {saved.why}")
    return lines


def _summary(report: Report) -> str:
    whole = report.all
    dated = [answer.submitted for answer in report.answers if answer.submitted is not None]
    times = f", submitted {dated[0]:%Y-%m-%d} to {dated[-1]:%Y-%m-%d}" if dated else ""
    return (
        f"Project {report.project.id}: {html.counted(whole.answers, 'answer')} on {html.counted(whole.tasks, 'task')} "
        f"by {html.counted(len(report.annotators), 'annotator')}{times}. "
        f"{html.counted(len(report.versions), 'model version')}."
    )


def _notes(report: Report) -> list[str]:
    notes = []
    if not report.answers:
        notes.append(
            f"There is nothing to report yet: of {report.reading.tasks} annotated tasks none has an annotation that "
            "counts. Submit some in Label Studio, then make this report again."
        )
    elif not any(answer.predicted for answer in report.answers):
        notes.append("No annotation began with a prediction, so nothing can be said about predictions.")
    if left_out := not_comparable(report.reading):
        notes.append(f"Partial: {left_out} annotations or regions could not be compared; see the end of the page.")
    return notes


def _body(report: Report) -> str:
    if not report.answers:
        return sections.left_out(report)
    parts = [sections.tiles(report)]
    if report.versions:
        parts += [
            html.grid(sections.quality(report), sections.edits(report)),
            groups.versions(report),
            _time(report),
            html.grid(sections.scores(report), sections.kinds(report)),
            groups.labels(report),
        ]
    parts += [groups.annotators(report), sections.minutes(report), sections.worst(report)]
    return "".join([*parts, html.part("definitions.html"), sections.left_out(report)])


def _time(report: Report) -> str:
    line = report.timeline
    if len(line.groups) < 2:
        return ""
    numbers = {group.name: n for n, group in enumerate(report.versions, 1)}
    marks = [(place, f"v{numbers[version]}") for place, version in line.begins if version in numbers]
    told = html.said(f"By {line.unit} of submission. Dashed: the first answer to a version, numbered as above.")
    return html.grid(
        html.card(f"IoU by {line.unit}", told, plots.iou_over_time(line, marks)),
        html.card(f"Regions by {line.unit}", html.fate_legend(*Fate), plots.fates_over_time(line, marks)),
    )

"""The sections of the report's page."""

from __future__ import annotations

from html import escape

from rsvp_backend.reports import html, plots
from rsvp_backend.reports.answers import Fate, Kind
from rsvp_backend.reports.overlays import Tile
from rsvp_backend.reports.report import Report

_KINDS = {
    Kind.UNTOUCHED: "all predicted regions submitted as they were, none drawn",
    Kind.EDITED: "some kept, but changed, deleted or joined by others",
    Kind.DELETED: "all predicted regions deleted",
    Kind.MISSED: "nothing was predicted, something was drawn",
    Kind.EMPTY_RIGHT: "nothing was predicted, nothing was drawn",
    Kind.BY_HAND: "drawn without a prediction",
}


def tiles(report: Report) -> str:
    whole, regions, saved = report.all, report.all.regions, report.saved
    low, high = whole.iou.interval
    found = [
        (html.number(whole.iou.mean), f"mean IoU of prediction and final mask, {low:.2f} to {high:.2f}"
         if whole.iou.count else "mean IoU: no mask was compared"),
        (html.percent(regions.share(Fate.UNTOUCHED)), f"of {regions.predicted} predicted regions untouched"),
        (html.percent(regions.share(Fate.DELETED)), "of them deleted"),
        (html.percent(regions.share(Fate.DRAWN)), f"of {regions.final} final regions drawn by hand"),
    ]  # fmt: skip
    if whole.empty:
        right = whole.kinds[Kind.EMPTY_RIGHT] / whole.empty
        found.append((html.percent(right), f"of {whole.empty} empty predictions were right"))
    if saved.known:
        edges = " to ".join(html.minutes(edge * saved.assisted) for edge in saved.interval_s)
        found.append((html.minutes(saved.total_s), f"saved, {edges}: see below"))
    else:
        found.append((html.UNKNOWN, "minutes saved: not known, see below"))
    return f'<div class="tiles">{"".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in found)}</div>'


def quality(report: Report) -> str:
    names = [(str(fate), str(kind)) for kind, fate in plots.KINDS]
    told = html.said(
        f"{html.counted(report.all.iou.count, 'answer')} by the IoU of all their predicted and all their final "
        "masks, label by label, in tenths; colours tell what became of the answer."
    )
    return html.card("How good the masks were", told, plots.iou_histogram(report.answers), html.legend(names))


def edits(report: Report) -> str:
    tally = report.all.regions
    share = tally.changed_share
    told = html.said(
        f"{html.counted(tally.fates[Fate.EDITED], 'edited region')} by changed pixels (added and removed), in "
        "% of the final mask's."
    )
    if share.count:
        told += html.said(
            f"Of the whole image changed: median {share.median:.2%}, a tenth of the edits more than "
            f"{share.quantiles[-1]:.2%}. In all {tally.added_px:,} px added, {tally.removed_px:,} px removed."
        )
    return html.card("How much was edited", told, plots.edit_histogram(report.answers))


def scores(report: Report) -> str:
    found = report.calibration
    if not found.count:
        return html.card("Does the score tell the truth?", html.said("No region has both a score and a final mask."))
    told = html.said(
        f"{html.counted(found.count, 'predicted region')} by their score; deleted ones reached 0. On the dashed line a "
        f"score means what it says. Off by {found.error:.3f} on average (expected calibration error)."
    )
    return html.card("Does the score tell the truth?", told, plots.calibration(found))


def kinds(report: Report) -> str:
    whole = report.all
    rows = [
        [f"{kind}<br><small class='dim'>{_KINDS[kind]}</small>", str(whole.kinds[kind]),
         html.percent(whole.kinds[kind] / whole.answers)]
        for kind in Kind
    ]  # fmt: skip
    return html.card("What became of whole answers", html.table(("answer", "count", "share"), rows))


def minutes(report: Report) -> str:
    saved = report.saved
    formula = (
        "saved per answer = median time by hand - median time with a prediction<br>"
        "saved in all = saved per answer × answers with a prediction"
    )
    parts = [f'<p class="formula">{formula}</p>']
    if saved.known:
        low, high = saved.interval_s
        by_hand = (
            f"the median of {saved.by_hand} answers" if saved.source == "measured" else "given by --minutes-by-hand"
        )
        parts.append(
            f"<p>{html.seconds(saved.by_hand_s)} ({by_hand}) - {html.seconds(saved.assisted_s)} (the median of "
            f"{saved.assisted} answers) = <b>{html.seconds(saved.per_answer_s)}</b> per answer, 95 % interval "
            f"{html.seconds(low)} to {html.seconds(high)}; in all <b>{html.minutes(saved.total_s)}</b>, "
            f"{html.minutes(low * saved.assisted)} to {html.minutes(high * saved.assisted)}.</p>"
        )
        if low < 0 < high:
            parts.append("<p>The interval holds 0: it is not known whether predictions save time here.</p>")
    else:
        parts.append(f"<p><b>Not known</b>: {escape(saved.why)}.</p>")
    top = max((spread.quantiles[-1] for _, spread in report.leads), default=0.0)
    rows = [
        [
            escape(kind),
            str(spread.count),
            *(html.seconds(spread.quantiles[n]) for n in (1, 2, 3)),
            html.spread(spread, top),
        ]
        for kind, spread in report.leads
    ]
    if rows:
        parts.append(html.table(("answer", "count", "25 %", "median", "75 %", "10 to 90 %"), rows, wide=(5,)))
    parts.append(html.part("minutes.html"))
    return html.card("Minutes saved", *parts)


def worst(report: Report) -> str:
    if not report.worst:
        return ""
    legend = html.legend([("removed", "predicted, not in the final mask"), ("added", "added by hand")])
    figures = "".join(_figure(report, one) for one in report.worst)
    title = f"The {len(report.worst)} worst answers" if len(report.worst) > 1 else "The worst answer"
    told = html.said(
        "Lowest IoU first. Each leads to its task in Label Studio; pictures show the surroundings of the masks."
    )
    return html.card(title, told, legend, f'<div class="worst">{figures}</div>')


def left_out(report: Report) -> str:
    found = report.reading.left_out.most_common()
    if not found:
        return ""
    items = []
    for reason, count in found:
        tasks = ", ".join(
            f'<a href="{escape(report.task_url(task))}">{task}</a>' for task in report.reading.tasks_left_out[reason]
        )
        detail = report.reading.details.get(reason, "")
        items.append(
            f"<li>{count}: {escape(str(reason))} (tasks {tasks}){': ' + escape(detail) if detail else ''}</li>"
        )
    return html.card("What was left out", f"<ul>{''.join(items)}</ul>")


def _figure(report: Report, one: Tile) -> str:
    answer = one.answer
    url = escape(report.task_url(answer.task))
    inside = (
        f'<a class="shown" href="{url}"><img src="{one.picture}" alt="masks of task {answer.task}" loading="lazy"></a>'
        if one.picture
        else f'<div class="shown"><p>{escape(one.problem)}</p></div>'
    )
    instruction = f"<br>{escape(one.instruction[:160])}" if one.instruction.strip("-") else ""
    iou = f"{answer.iou:.3f}" if answer.iou is not None else "-"
    return (
        f'<figure>{inside}<figcaption><a href="{url}">Task {answer.task}</a>, IoU {iou}, {answer.kind}{instruction}'
        "</figcaption></figure>"
    )

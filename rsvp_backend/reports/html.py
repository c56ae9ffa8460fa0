"""Small parts of the report's page: numbers, bars, tables, cards. Every text that is not ours is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files

from rsvp_backend.reports.answers import Fate
from rsvp_backend.reports.summary import Spread, Tally

UNKNOWN = '<span class="dim">-</span>'
FATES = {
    Fate.UNTOUCHED: "submitted as it was",
    Fate.EDITED: "mask or label changed",
    Fate.DELETED: "not kept",
    Fate.DRAWN: "by hand",
}


@cache
def part(name: str) -> str:
    """A file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float, digits: int = 3) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """A share in [0, 1]."""
    return UNKNOWN if math.isnan(value) else f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def interval(spread: Spread) -> str:
    """The mean and its 95 % interval."""
    low, high = spread.interval
    return f"{number(spread.mean)} <small>{low:.2f} to {high:.2f}</small>" if spread.count else UNKNOWN


def seconds(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:,.1f} s" if abs(value) < 100 else f"{value:,.0f} s"


def minutes(value_s: float) -> str:
    """Whole minutes, of seconds; a loss has its sign."""
    return (
        UNKNOWN
        if math.isnan(value_s)
        else f"{value_s / 60:,.1f} min"
        if abs(value_s) < 600
        else f"{value_s / 60:,.0f} min"
    )


def fates(tally: Tally) -> str:
    """What became of predicted regions, as one bar."""
    shown = [fate for fate in Fate if fate is not Fate.DRAWN and tally.fates[fate]]
    said = ", ".join(f"{tally.fates[fate]} {fate}" for fate in shown) or "nothing predicted"
    parts = [f'<i class="{fate}" style="width:{tally.share(fate):.2%}"></i>' for fate in shown]
    return f'<span class="bar" role="img" aria-label="{said}" title="{said}">{"".join(parts)}</span>'


def spread(values: Spread, top: float = 1.0) -> str:
    """10 to 90 % as a thin bar, 25 to 75 % as a thick one, the median as a stroke; from 0 to ``top``."""
    if not values.count or top <= 0:
        return UNKNOWN
    q10, q25, q50, q75, q90 = (min(1.0, max(0.0, value / top)) for value in values.quantiles)
    said = ", ".join(f"{n} %: {value:.3g}" for n, value in zip((10, 25, 50, 75, 90), values.quantiles, strict=True))
    return (
        f'<span class="range" role="img" aria-label="{said}" title="{said}">{_piece("", q10, q90)}'
        f'{_piece("half", q25, q75)}<i class="median" style="left:{q50:.2%}"></i></span>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[int] = ()) -> str:
    """Cells are HTML already. ``wide``: columns with bars."""
    head = "".join(f'<th{" class=" + chr(34) + "wide" + chr(34) if n in wide else ""}>{name}</th>'
                   for n, name in enumerate(header))  # fmt: skip
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def card(title: str, *parts: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def said(text: str) -> str:
    """A remark; HTML already."""
    return f'<p class="dim">{text}</p>'


def legend(names: Sequence[tuple[str, str]]) -> str:
    """``names``: (class, name)."""
    return f'<p class="legend">{"".join(f"<span><i class={css!r}></i>{name}</span>" for css, name in names)}</p>'


def fate_legend(*shown: Fate) -> str:
    return legend([(str(fate), f"{fate}: {FATES[fate]}") for fate in shown])


def grid(*cards: str) -> str:
    return f'<div class="grid">{"".join(cards)}</div>'


def _piece(css: str, start: float, end: float) -> str:
    return f'<i class="{css}" style="left:{start:.2%};width:{max(0.0, end - start):.2%}"></i>'

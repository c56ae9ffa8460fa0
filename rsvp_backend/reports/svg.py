"""Plots as inline SVG, coloured by the page's classes so that dark and light are one file.

All are `WIDTH` units wide and scale with the page; every mark carries its numbers as a ``<title>``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rsvp_backend.training.reliability import Bin

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 24, 34
_INNER, _TALL = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_MOST_LABELS = 6
_CHAR = 6.4  # mean width of a character of a label


@dataclass(frozen=True, slots=True)
class Series:
    """``css``: its class; ``name``: what a reader is told."""

    css: str
    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Point:
    """A mean with its interval; nan where there is none."""

    mean: float
    low: float
    high: float
    count: int


Mark = tuple[int, str]
"""A dashed line before this column, and what stands over it."""


def columns(title: str, labels: Sequence[str], series: Sequence[Series], marks: Sequence[Mark] = ()) -> str:
    """Stacked columns of counts, the first series at the bottom."""
    totals = [sum(one.values[n] for one in series) for n in range(len(labels))]
    top, step = _scale(max(totals, default=0))
    parts = [_grid([(value / top, f"{value:g}") for value in _ticks(top, step)])]
    slot = _INNER / max(1, len(labels))
    for n, label in enumerate(labels):
        filled = 0.0
        for one in series:
            tall = one.values[n] / top * _TALL
            if tall:
                said = f"{label}: {one.values[n]:g} {one.name}"
                x, y = LEFT + slot * (n + 0.1), TOP + _TALL - filled - tall
                parts.append(_rect(one.css, x, y, slot * 0.8, tall, said))
            filled += tall
    return _picture(title, [*parts, _below(labels, slot), _marks(marks, slot)])


def trend(title: str, labels: Sequence[str], points: Sequence[Point], marks: Sequence[Mark] = ()) -> str:
    """Means in [0, 1] with their intervals, joined where none is missing between."""
    slot = _INNER / max(1, len(labels))
    parts, path, pen = [_grid([(n / 5, f"{n / 5:.1f}") for n in range(6)])], "", "M"
    for n, (label, point) in enumerate(zip(labels, points, strict=True)):
        if math.isnan(point.mean):
            continue
        x, y = LEFT + slot * (n + 0.5), _y(point.mean)
        path, pen = f"{path}{pen}{x:.1f} {y:.1f}", "L"
        said = f"{label}: {point.mean:.3f} ({point.low:.3f} to {point.high:.3f}), {point.count} answers"
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(point.low):.1f}" y2="{_y(point.high):.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(said)}</title></circle>'
        )
    parts.insert(1, f'<path class="line" d="{path}"/>' if path else "")
    return _picture(title, [*parts, _below(labels, slot), _marks(marks, slot)])


def reliability(title: str, table: Sequence[Bin], across: str) -> str:
    """What is reached over what is predicted, both in [0, 1]; the number of regions at each point."""
    grid = _grid([(n / 5, f"{n / 5:.1f}") for n in range(6)])
    diagonal = f'<line class="even" x1="{LEFT}" y1="{_y(0)}" x2="{LEFT + _INNER}" y2="{_y(1)}"/>'
    parts, most = [], max((one.count for one in table), default=1)
    for one in table:
        x, y, radius = LEFT + one.predicted * _INNER, _y(one.reached), 3 + 9 * math.sqrt(one.count / most)
        said = f"score {one.predicted:.2f}, IoU {one.reached:.2f}, {one.count} regions"
        above = y - radius - 3 if y - radius > TOP + 6 else y + radius + 12
        parts.append(
            f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{said}</title></circle>'
            f'<text class="count" x="{x:.1f}" y="{above:.1f}" text-anchor="middle">{one.count}</text>'
        )
    names = [
        _text(LEFT + n / 5 * _INNER, HEIGHT - BOTTOM + 14, f"{n / 5:.1f}", "end" if n == 5 else "middle")
        for n in range(6)
    ]
    legend = _text(LEFT + _INNER / 2, HEIGHT - 3, across, "middle")
    return _picture(title, [grid, diagonal, *parts, *names, legend])


def _picture(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _grid(ticks: Sequence[tuple[float, str]]) -> str:
    """Horizontal lines at shares of the height, with their names."""
    lines = []
    for share, name in ticks:
        y = _y(share)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 5, y + 4, name, "end"))
    return "".join(lines)


def _below(labels: Sequence[str], slot: float) -> str:
    """As many of the columns' names as fit."""
    widest = max((len(label) for label in labels), default=1) * _CHAR + 6
    every = max(1, math.ceil(len(labels) / _MOST_LABELS), math.ceil(widest / slot)) if labels else 1
    if len(labels) <= 10 and widest <= slot:
        every = 1
    names = []
    for n in range(0, len(labels), every):
        half = len(labels[n]) * _CHAR / 2
        x = min(max(LEFT + slot * (n + 0.5), half), WIDTH - half - 1)
        names.append(_text(x, HEIGHT - BOTTOM + 14, labels[n], "middle"))
    return "".join(names)


def _marks(marks: Sequence[Mark], slot: float) -> str:
    found: dict[int, list[str]] = {}
    for place, name in marks:
        found.setdefault(place, []).append(name)
    parts = []
    for place, names in found.items():
        x = LEFT + slot * place
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{_y(0)}"/>')
        parts.append(_text(x, TOP - 8, " ".join(names), "start" if x < WIDTH - 60 else "end"))
    return "".join(parts)


def _rect(css: str, x: float, y: float, width: float, height: float, said: str) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{css}" {shape}><title>{escape(said)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _y(share: float) -> float:
    return TOP + _TALL * (1 - min(1.0, max(0.0, share)))


def _scale(most: float) -> tuple[float, float]:
    """A round number not below ``most``, and the distance of the lines up to it."""
    if most <= 0:
        return 1.0, 1.0
    rough = most / 4
    power = 10 ** math.floor(math.log10(rough))
    step = max(1.0, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough))
    return math.ceil(most / step) * step, step


def _ticks(top: float, step: float) -> list[float]:
    return [step * n for n in range(round(top / step) + 1)]

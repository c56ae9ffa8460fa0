"""What a job measured on its way, as lines: inline SVG that the pages' style sheet colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from rsvp_backend.jobs.store import Curve

WIDTH, HEIGHT = 440, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 22
_LINES = 3
Points = Sequence[tuple[int, float]]
_Place = Callable[[int, float], tuple[float, float]]


def curves(curve: Curve, total: int) -> str:
    """The loss, and the held-out IoU where it was measured, over the steps up to ``total`` (0: nobody knows)."""
    losses = [(step, loss) for step, loss, _ in curve if loss is not None]
    held_out = [(step, value) for step, _, value in curve if value is not None]
    parts = [_figure("Loss", losses, total), _figure("IoU on held-out corrections", held_out, total)]
    return f'<div class="pictures">{"".join(parts)}</div>' if any(parts) else ""


def _figure(name: str, points: Points, total: int) -> str:
    if not points:
        return ""
    said = f"{name}: {points[-1][1]:.3f} at step {points[-1][0]}"
    return f"<figure>{_plot(name, points, total)}<figcaption>{said}</figcaption></figure>"


def _plot(name: str, points: Points, total: int) -> str:
    low, high = _range([value for _, value in points])
    last = max(total, points[-1][0], 1)

    def place(step: int, value: float) -> tuple[float, float]:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last
        return across, _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    lines = [_line(low + (high - low) * n / _LINES, place) for n in range(_LINES + 1)]
    path = "".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(place(*one) for one in points))
    x, y = place(*points[-1])
    ends = _text(_LEFT, HEIGHT - 6, "0", "middle") + _text(WIDTH - _RIGHT, HEIGHT - 6, f"step {last}", "end")
    said = escape(f"{name} from {points[0][1]:.3f} at step {points[0][0]} to {points[-1][1]:.3f} at {points[-1][0]}")
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(lines)}{ends}'
        f'<path class="line" d="{path}"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></svg>'
    )


def _line(value: float, place: _Place) -> str:
    _, y = place(0, value)
    rule = f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return rule + _text(_LEFT - 6, y + 4, f"{value:.2f}", "end")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers around all of them, apart from each other."""
    low, high = min(values), max(values)
    step = 10 ** math.floor(math.log10(max(high - low, 0.03)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if high > low else (low, low + step)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'

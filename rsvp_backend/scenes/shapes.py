"""Everyday objects as flat drawings: each class is a function that draws itself with a `Pen` in the unit square.

Coordinates run from 0 to 1, x to the right and y down. A tone of 1.0 is the object's own colour; lower is darker,
higher lighter. ``v`` is a number in [0, 1] that varies the proportions from object to object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]


class Pen:
    """Draws tones (L, 128 = tone 1.0) and silhouette (L, 0 or 255) of one object on a square of ``side_px``."""

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self.tones = Image.new("L", (side_px, side_px), 128)
        self.silhouette = Image.new("L", (side_px, side_px), 0)
        self._draw_tone = ImageDraw.Draw(self.tones)
        self._draw_shape = ImageDraw.Draw(self.silhouette)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, tone: float = 1.0) -> None:
        box = [c * self.side_px for c in (x0, y0, x1, y1)]
        self._draw_tone.ellipse(box, fill=_level(tone))
        self._draw_shape.ellipse(box, fill=255)

    def polygon(self, points: Sequence[Point], tone: float = 1.0) -> None:
        scaled = [(x * self.side_px, y * self.side_px) for x, y in points]
        self._draw_tone.polygon(scaled, fill=_level(tone))
        self._draw_shape.polygon(scaled, fill=255)

    def rect(self, x0: float, y0: float, x1: float, y1: float, tone: float = 1.0, radius: float = 0.0) -> None:
        box = [c * self.side_px for c in (x0, y0, x1, y1)]
        self._draw_tone.rounded_rectangle(box, radius * self.side_px, fill=_level(tone))
        self._draw_shape.rounded_rectangle(box, radius * self.side_px, fill=255)

    def stroke(self, points: Sequence[Point], width: float, tone: float = 1.0) -> None:
        """A polyline with round joints and ends."""
        scaled = [(x * self.side_px, y * self.side_px) for x, y in points]
        width_px = max(1, round(width * self.side_px))
        for draw, fill in ((self._draw_tone, _level(tone)), (self._draw_shape, 255)):
            draw.line(scaled, fill=fill, width=width_px, joint="curve")
            for x, y in scaled:
                draw.ellipse([x - width_px / 2, y - width_px / 2, x + width_px / 2, y + width_px / 2], fill=fill)

    def hole(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """An elliptic hole: the background shows through."""
        self._draw_shape.ellipse([c * self.side_px for c in (x0, y0, x1, y1)], fill=0)


def _level(tone: float) -> int:
    return max(0, min(255, round(128 * tone)))


def arc(cx: float, cy: float, rx: float, ry: float, start_deg: float, end_deg: float, steps: int = 16) -> list[Point]:
    """Points on an elliptic arc; angles from +x, clockwise on the screen."""
    angles = [math.radians(start_deg + (end_deg - start_deg) * i / steps) for i in range(steps + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def key(pen: Pen, v: float) -> None:
    top = 0.36 + 0.06 * v
    pen.rect(0.44, top - 0.05, 0.56, 0.96, radius=0.02)
    pen.ellipse(0.5 - top / 2, 0.03, 0.5 + top / 2, 0.03 + top)
    pen.hole(0.5 - top / 5, 0.03 + top * 0.25, 0.5 + top / 5, 0.03 + top * 0.65)
    pen.rect(0.54, 0.70, 0.74, 0.78)
    pen.rect(0.54, 0.85, 0.70 + 0.08 * v, 0.93)


def mug(pen: Pen, v: float) -> None:
    left, right, top = 0.12, 0.68, 0.2 - 0.08 * v
    pen.ellipse(right - 0.16, 0.3, 0.97, 0.74, 0.9)
    pen.hole(right - 0.05, 0.4, 0.87, 0.64)
    pen.rect(left, top, right, 0.9, radius=0.06)
    pen.ellipse(left, top - 0.07, right, top + 0.07, 0.6)


def ball(pen: Pen, v: float) -> None:
    pen.ellipse(0.08, 0.08, 0.92, 0.92)
    pen.stroke(arc(0.5 - 0.6, 0.5, 0.62, 0.7, -33, 33), 0.035, 0.55)
    pen.stroke(arc(0.5 + 0.6, 0.5, 0.62, 0.7, 147, 213), 0.035, 0.55)
    pen.ellipse(0.26 + 0.06 * v, 0.18, 0.42 + 0.06 * v, 0.32, 1.45)


def hammer(pen: Pen, v: float) -> None:
    pen.rect(0.44, 0.2, 0.57, 0.97, 0.8, radius=0.04)
    pen.rect(0.16, 0.08, 0.74 + 0.06 * v, 0.33, radius=0.03)
    pen.polygon([(0.74, 0.1), (0.93, 0.2), (0.74, 0.31)])
    pen.rect(0.12, 0.05, 0.22, 0.36, 0.7, radius=0.02)


def book(pen: Pen, v: float) -> None:
    width = 0.6 + 0.2 * v
    left = 0.5 - width / 2
    pen.rect(left, 0.08, left + width, 0.92, radius=0.03)
    pen.rect(left, 0.08, left + 0.1, 0.92, 0.6)
    pen.rect(left + 0.18, 0.2, left + width - 0.1, 0.3, 1.5)
    pen.rect(left + 0.18, 0.38, left + width - 0.2, 0.43, 1.5)


def lamp(pen: Pen, v: float) -> None:
    top = 0.32 - 0.08 * v
    pen.rect(0.46, 0.45, 0.54, 0.88, 0.55)
    pen.ellipse(0.26, 0.82, 0.74, 0.97, 0.55)
    pen.polygon([(top, 0.05), (1 - top, 0.05), (0.92, 0.52), (0.08, 0.52)])
    pen.polygon([(0.44, 0.05), (0.56, 0.05), (0.62, 0.52), (0.38, 0.52)], 1.25)


def umbrella(pen: Pen, v: float) -> None:
    pen.stroke([(0.5, 0.3), (0.5, 0.86), *arc(0.59, 0.86, 0.09, 0.09, 180, 20)], 0.05, 0.5)
    pen.polygon(arc(0.5, 0.52, 0.46, 0.42 + 0.04 * v, 180, 360, 28))
    pen.polygon([(0.5, 0.1), *arc(0.5, 0.52, 0.17, 0.06, 180, 360, 8)], 1.3)
    for x in (0.04, 0.345, 0.655):
        pen.ellipse(x, 0.47, x + 0.305, 0.57)


def bottle(pen: Pen, v: float) -> None:
    wide = 0.19 + 0.05 * v
    pen.rect(0.42, 0.03, 0.58, 0.4, radius=0.02)
    pen.rect(0.40, 0.02, 0.60, 0.12, 0.5, radius=0.02)
    pen.polygon([(0.42, 0.25), (0.58, 0.25), (0.5 + wide, 0.45), (0.5 - wide, 0.45)])
    pen.rect(0.5 - wide, 0.42, 0.5 + wide, 0.97, radius=0.05)
    pen.rect(0.5 - wide, 0.56, 0.5 + wide, 0.78, 1.5)


def apple(pen: Pen, v: float) -> None:
    pen.stroke([(0.5, 0.3), (0.55, 0.08)], 0.05, 0.4)
    pen.ellipse(0.1, 0.24, 0.6, 0.92)
    pen.ellipse(0.4, 0.24, 0.9, 0.92)
    pen.ellipse(0.3, 0.6, 0.7, 0.95)
    pen.polygon([(0.55, 0.2), (0.7, 0.06 + 0.04 * v), (0.86, 0.1), (0.72, 0.22)], 0.7)


def banana(pen: Pen, v: float) -> None:
    outer = arc(0.45, 0.1, 0.5, 0.8 + 0.06 * v, 8, 140, 24)
    inner = arc(0.45, 0.1, 0.34, 0.46, 140, 8, 24)
    pen.polygon(outer + inner)
    pen.stroke([outer[0], (0.93, 0.1)], 0.07, 0.5)
    pen.stroke([outer[-1], inner[0]], 0.06, 0.5)


def scissors(pen: Pen, v: float) -> None:
    pen.polygon([(0.3, 0.04), (0.37, 0.03), (0.62, 0.62), (0.54, 0.66)], 1.4)
    pen.polygon([(0.70, 0.04), (0.63, 0.03), (0.38, 0.62), (0.46, 0.66)], 1.3)
    for x in (0.16, 0.52):
        pen.ellipse(x, 0.6, x + 0.32, 0.97 - 0.03 * v)
        pen.hole(x + 0.08, 0.68, x + 0.24, 0.89)


def spoon(pen: Pen, v: float) -> None:
    pen.rect(0.46, 0.3, 0.54, 0.97, radius=0.03)
    pen.ellipse(0.33 - 0.04 * v, 0.03, 0.67 + 0.04 * v, 0.44)
    pen.ellipse(0.40, 0.08, 0.60, 0.36, 0.75)


def fork(pen: Pen, v: float) -> None:
    pen.rect(0.46, 0.4, 0.54, 0.97, radius=0.03)
    pen.rect(0.30, 0.32, 0.70, 0.44, radius=0.05)
    for x in (0.30, 0.425, 0.55, 0.655):
        pen.rect(x, 0.04 + 0.03 * v, x + 0.055, 0.4, radius=0.02)


def knife(pen: Pen, v: float) -> None:
    pen.polygon([(0.44, 0.6), (0.44, 0.05), (0.6 + 0.06 * v, 0.22), (0.62, 0.6)], 1.4)
    pen.rect(0.44, 0.58, 0.6, 0.97, 0.8, radius=0.04)


def chair(pen: Pen, v: float) -> None:
    pen.rect(0.2, 0.04, 0.32, 0.96, 0.85)
    pen.rect(0.2, 0.08 + 0.05 * v, 0.3, 0.5)
    pen.rect(0.2, 0.5, 0.82, 0.62)
    pen.rect(0.7, 0.55, 0.82, 0.96, 0.85)
    pen.rect(0.2, 0.04, 0.4, 0.2)


def clock(pen: Pen, v: float) -> None:
    pen.ellipse(0.06, 0.06, 0.94, 0.94)
    pen.ellipse(0.16, 0.16, 0.84, 0.84, 1.7)
    angle = 2 * math.pi * v
    pen.stroke([(0.5, 0.5), (0.5 + 0.26 * math.sin(angle), 0.5 - 0.26 * math.cos(angle))], 0.05, 0.3)
    pen.stroke([(0.5, 0.5), (0.5 + 0.16 * math.cos(angle), 0.5 + 0.16 * math.sin(angle))], 0.06, 0.3)


def pencil(pen: Pen, v: float) -> None:
    pen.rect(0.41, 0.12, 0.59, 0.78)
    pen.rect(0.41, 0.03, 0.59, 0.13, 0.6, radius=0.03)
    pen.rect(0.47, 0.13, 0.53, 0.78, 1.3)
    pen.polygon([(0.41, 0.78), (0.59, 0.78), (0.5, 0.97)], 1.6)
    pen.polygon([(0.47, 0.9 - 0.02 * v), (0.53, 0.9 - 0.02 * v), (0.5, 0.97)], 0.3)


def hat(pen: Pen, v: float) -> None:
    pen.ellipse(0.02, 0.58, 0.98, 0.86, 0.9)
    pen.rect(0.26, 0.2 - 0.06 * v, 0.74, 0.7, radius=0.1)
    pen.rect(0.26, 0.52, 0.74, 0.64, 0.5)


def mushroom(pen: Pen, v: float) -> None:
    pen.rect(0.38, 0.45, 0.62, 0.95, 1.6, radius=0.08)
    pen.polygon(arc(0.5, 0.55, 0.44, 0.45 + 0.04 * v, 180, 360, 28))
    pen.ellipse(0.24, 0.3, 0.36, 0.42, 1.6)
    pen.ellipse(0.52, 0.2, 0.66, 0.33, 1.6)


def padlock(pen: Pen, v: float) -> None:
    pen.stroke(arc(0.5, 0.38, 0.22, 0.28 - 0.04 * v, 180, 360), 0.1, 0.7)
    pen.rect(0.16, 0.42, 0.84, 0.94, radius=0.06)
    pen.ellipse(0.44, 0.56, 0.56, 0.68, 0.35)
    pen.rect(0.475, 0.62, 0.525, 0.8, 0.35)


DRAWINGS: dict[str, Callable[[Pen, float], None]] = {
    f.__name__: f
    for f in (
        key, mug, ball, hammer, book, lamp, umbrella, bottle,
        apple, banana, scissors, spoon, fork, knife, chair, clock, pencil, hat, mushroom, padlock,
    )
}  # fmt: skip

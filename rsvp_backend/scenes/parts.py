"""Exact masks of parts of a scene's objects ("the head of the hammer"): the same drawing, but only some of its strokes.

Nothing of a scene changes by it: a part is cut out of the mask that the scene already has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from rsvp_backend.scenes.render import SUPERSAMPLING
from rsvp_backend.scenes.scene import Scene
from rsvp_backend.scenes.shapes import DRAWINGS, Pen, Point
from rsvp_backend.types import BoolMask

PARTS: dict[tuple[str, str], frozenset[int]] = {
    ("hammer", "head"): frozenset({1, 2, 3}),
    ("mug", "handle"): frozenset({0, 1}),
    ("lamp", "shade"): frozenset({2, 3}),
    ("bottle", "cap"): frozenset({1}),
}
"""(class, part) -> which strokes of the class's drawing make the part, counted from 0."""


class PartPen(Pen):
    """Draws as `Pen` does and keeps in ``part`` (L, 0 or 255) what is seen of the strokes ``own``."""

    def __init__(self, side_px: int, own: frozenset[int]) -> None:
        super().__init__(side_px)
        self.part = Image.new("L", (side_px, side_px), 0)
        self._own, self._count = own, 0

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, tone: float = 1.0) -> None:
        self._stroke(lambda pen: pen.ellipse(x0, y0, x1, y1, tone))

    def polygon(self, points: Sequence[Point], tone: float = 1.0) -> None:
        self._stroke(lambda pen: pen.polygon(points, tone))

    def rect(self, x0: float, y0: float, x1: float, y1: float, tone: float = 1.0, radius: float = 0.0) -> None:
        self._stroke(lambda pen: pen.rect(x0, y0, x1, y1, tone, radius))

    def stroke(self, points: Sequence[Point], width: float, tone: float = 1.0) -> None:
        self._stroke(lambda pen: pen.stroke(points, width, tone))

    def hole(self, x0: float, y0: float, x1: float, y1: float) -> None:
        super().hole(x0, y0, x1, y1)
        self.part = ImageChops.darker(self.part, self.silhouette)
        self._count += 1

    def _stroke(self, draw: Callable[[Any], None]) -> None:
        """One stroke, drawn alone to know what it covers."""
        alone = Pen(self.side_px)
        draw(alone)
        self.part.paste(255 if self._count in self._own else 0, (0, 0), alone.silhouette)
        self.silhouette.paste(255, (0, 0), alone.silhouette)
        self._count += 1


def part_mask(scene: Scene, item: int, part: str) -> BoolMask:
    """Visible mask of one part of ``scene.layout.items[item]``, bool ``(height, width)`` of the image.

    Raises `KeyError` for a part that `PARTS` does not have.
    """
    drawn = scene.layout.items[item]
    own = PARTS[drawn.name, part]
    width, height = scene.image.size
    short = min(width, height)
    pen = PartPen(max(8, round(drawn.size * short) * SUPERSAMPLING), own)
    DRAWINGS[drawn.name](pen, drawn.variation)
    shape = pen.part.rotate(drawn.rotation_deg, Image.Resampling.BILINEAR, expand=True)
    shape = shape.resize(
        (max(2, shape.width // SUPERSAMPLING), max(2, shape.height // SUPERSAMPLING)), Image.Resampling.BOX
    )
    placed = Image.new("L", (width, height), 0)
    left, top = round(drawn.cx * short - shape.width / 2), round(drawn.cy * short - shape.height / 2)
    placed.paste(shape, (left, top))
    shown: BoolMask = (np.asarray(placed) > 127) & scene.masks[item]
    return shown

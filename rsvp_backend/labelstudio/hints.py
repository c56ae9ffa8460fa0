"""What an annotator drew for the backend: the smart keypoints and rectangles of an interactive context.

Label Studio sends all open smart regions of one kind (keypoints or rectangles) and one label together, in the order in
which they were drawn, and no text with them; were there text, the hints would win. Coordinates are percentages of the
upright image, so they are measured on the image as it was fetched; ``original_width`` and ``original_height`` are only
compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rsvp_backend.errors import InstructionError
from rsvp_backend.labelstudio.tags import LabelConfig, match_label
from rsvp_backend.refinement import Hints
from rsvp_backend.types import Box, Click

KEYPOINTS = ("keypointlabels", "keypoint")
RECTANGLES = ("rectanglelabels", "rectangle")
_FARTHEST_PCT = 1e6

Result = Mapping[str, Any]


class _UnusableError(ValueError):
    """Why one drawn region is left out."""


def drawn_hints(context: Mapping[str, Any] | None, config: LabelConfig) -> list[Result]:
    """The keypoints and rectangles of a context (``params.context``) that lie on the config's image."""
    results = context.get("result") if isinstance(context, Mapping) else None
    return [
        result
        for result in (results if isinstance(results, list) else [])
        if isinstance(result, Mapping)
        and result.get("type") in KEYPOINTS + RECTANGLES
        and result.get("to_name", config.image_name) == config.image_name
    ]


def read_hints(context: Mapping[str, Any] | None, config: LabelConfig, width_px: int, height_px: int) -> Hints:
    """The drawn hints in pixels of the image, which has the given size.

    Of several rectangles the last one counts; a turned one becomes its axis-parallel bounding box. Whatever reaches
    beyond the image is clipped. A hint that cannot be used (outside of the image, not a number, a negative rectangle,
    drawn on a turned image) is left out with a note. Raises `InstructionError` with the notes where none is left.
    """
    clicks: list[Click] = []
    box, label, notes = None, None, []
    for result in drawn_hints(context, config):
        try:
            notes += _upright(result, width_px, height_px)
            if result["type"] in KEYPOINTS:
                clicks.append(_click(result, width_px, height_px))
            else:
                box = _box(result, width_px, height_px)
            label = _label(result, config) or label
        except _UnusableError as unusable:
            notes.append(f"{result['type']} left out: {unusable}")
    if not clicks and box is None:
        raise InstructionError(f"no click or rectangle can be used: {'; '.join(notes) or 'none was drawn'}")
    return Hints(tuple(clicks), box, label, tuple(dict.fromkeys(notes)))


def _upright(result: Result, width_px: int, height_px: int) -> list[str]:
    """A note where Label Studio shows the image at another size. Raises for an image that is turned there."""
    turned = result.get("image_rotation") or 0
    if turned:
        raise _UnusableError(f"the image is turned by {turned} degrees in Label Studio: turn it back")
    shown = result.get("original_width", width_px), result.get("original_height", height_px)
    if shown == (width_px, height_px):
        return []
    return [f"Label Studio shows the image at {shown[0]} x {shown[1]}, fetched it is {width_px} x {height_px}"]


def _click(result: Result, width_px: int, height_px: int) -> Click:
    x, y = _percent(result, "x"), _percent(result, "y")
    if not (0 <= x <= 100 and 0 <= y <= 100):
        raise _UnusableError(f"({x:.1f} %, {y:.1f} %) is outside of the image")
    # The far edges belong to the last pixels: clicks are half-open like boxes.
    x_px, y_px = min(x / 100 * width_px, width_px - 0.5), min(y / 100 * height_px, height_px - 0.5)
    return Click(x_px, y_px, result.get("is_positive") is not False)


def _box(result: Result, width_px: int, height_px: int) -> Box:
    """The bounding box: ``rotation`` degrees turn a rectangle clockwise about its upper left corner."""
    if result.get("is_positive") is False:
        raise _UnusableError("it is negative (drawn with Alt): only keypoints can be")
    left, top = _percent(result, "x") / 100 * width_px, _percent(result, "y") / 100 * height_px
    width, height = _percent(result, "width") / 100 * width_px, _percent(result, "height") / 100 * height_px
    angle = math.radians(_percent(result, "rotation", 0.0))
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(left + u * cos - v * sin, top + u * sin + v * cos) for u in (0.0, width) for v in (0.0, height)]
    xs, ys = zip(*corners, strict=True)
    x0, x1 = _clipped(min(xs), max(xs), width_px)
    y0, y1 = _clipped(min(ys), max(ys), height_px)
    return Box(x0, y0, x1, y1)


def _clipped(low: float, high: float, limit_px: int) -> tuple[int, int]:
    """The nearest whole pixels inside of ``0..limit_px``; at least one pixel."""
    if high <= 0 or low >= limit_px:
        raise _UnusableError("it is outside of the image")
    start = min(max(round(low), 0), limit_px - 1)
    return start, min(max(round(high), start + 1), limit_px)


def _percent(result: Result, name: str, default: float | None = None) -> float:
    value = result.get("value")
    number = value.get(name, default) if isinstance(value, Mapping) else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _FARTHEST_PCT:
        raise _UnusableError(f"{name} is {number!r:.30}: a number is expected")
    return float(number)


def _label(result: Result, config: LabelConfig) -> str | None:
    """The mask label that the region's own label names."""
    names = result["value"].get(result["type"]) or result["value"].get("labels")
    name = names[0] if isinstance(names, list) and names else None
    found = match_label(name if isinstance(name, str) else None, config.labels)
    return found.value if found else None

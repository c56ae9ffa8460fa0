"""Clicks and boxes as a person would give them, sampled from exact masks: what the decoder learns to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsvp_backend.types import BoolMask, Box, Click, Prompt
from rsvp_backend.vlsm.views import View

_SMALLEST_SHARE = 0.003  # of the view: less of an object is not something that a person would click on


@dataclass(frozen=True, slots=True)
class Hint:
    """A prompt without or beside a text, and the item that it means.

    ``points`` and ``corners`` are (x, y) in pixels of SAM's square input, see `Sam.encode_points`; ``text``: which of
    the crop's texts goes with it, if any.
    """

    item: int
    points: list[tuple[float, float]]
    labels: list[int]
    corners: list[tuple[float, float]]
    text: int | None


def sample_hint(
    rng: np.random.Generator,
    masks: Sequence[BoolMask],
    item: int,
    view: View,
    image_size: int,
    text: int | None,
) -> Hint:
    """Clicks on ``masks[item]`` (one to three, later ones may be negative), or a box around it with loose edges.

    ``masks``: bool ``(height, width)`` of the whole image, one per item; ``item`` must show in the view's frame.
    """
    frame = view.frame
    shown = [mask[frame.top : frame.bottom, frame.left : frame.right] for mask in masks]
    if rng.random() < 0.4:
        # A box of its own takes the place of the view's.
        own = View(frame, view.crop, _loose_box(rng, shown[item], frame))
        return Hint(item, [], [], own.box_corners(image_size), text)
    clicks = [_click(rng, shown[item], frame, positive=True)]
    for _ in range(int(rng.integers(3))):
        positive = rng.random() < 0.4
        elsewhere = ~shown[item] if rng.random() < 0.5 else _others(shown, item)
        where = shown[item] if positive else elsewhere
        if where.any():
            clicks.append(_click(rng, where, frame, positive))
    points, labels = view.points(Prompt(view.crop, clicks=tuple(clicks)), image_size)
    return Hint(item, points, labels, [], text)


def clickable(masks: Sequence[BoolMask], frame: Box) -> list[int]:
    """The items that show enough in ``frame`` to be clicked on."""
    smallest_px = _SMALLEST_SHARE * frame.area_px
    return [
        i
        for i, mask in enumerate(masks)
        if mask[frame.top : frame.bottom, frame.left : frame.right].sum() > smallest_px
    ]


def _others(shown: Sequence[BoolMask], item: int) -> BoolMask:
    merged: BoolMask = np.zeros_like(shown[item])
    for i, mask in enumerate(shown):
        if i != item:
            merged |= mask
    return merged


def _click(rng: np.random.Generator, where: BoolMask, frame: Box, positive: bool) -> Click:
    ys, xs = np.nonzero(where)
    n = int(rng.integers(len(ys)))
    return Click(frame.left + xs[n] + 0.5, frame.top + ys[n] + 0.5, positive)


def _loose_box(rng: np.random.Generator, shown: BoolMask, frame: Box) -> Box:
    """The item's box with each edge moved by up to a tenth of its size, inside the frame."""
    ys, xs = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    height, width = ys[-1] + 1 - ys[0], xs[-1] + 1 - xs[0]
    dx, dy = rng.uniform(-0.05, 0.1, 2) * width, rng.uniform(-0.05, 0.1, 2) * height
    left, right = int(xs[0] - dx[0]), int(xs[-1] + 1 + dx[1])
    top, bottom = int(ys[0] - dy[0]), int(ys[-1] + 1 + dy[1])
    left, top = max(0, min(left, frame.width - 2)), max(0, min(top, frame.height - 2))
    right, bottom = min(frame.width, max(right, left + 1)), min(frame.height, max(bottom, top + 1))
    return Box(frame.left + left, frame.top + top, frame.left + right, frame.top + bottom)

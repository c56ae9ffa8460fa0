"""Region marks: draw them on an image (the visual prompt), and turn region ids into boxes and back.

Rows and columns are counted from 1 at the upper left; cells are row-major. A region's edges are rounded to whole
pixels in such a way that neighbours share them and together cover the image exactly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rsvp_backend.types import BoolMask, Box, Marks, Regions

MIN_REGION_PX = 30
"""The smallest side of a region whose digits are drawn 10 px high."""


def edges_px(count: int, length_px: int) -> list[int]:
    """The ``count + 1`` edges of ``count`` equal bands over ``length_px`` pixels."""
    return [round(i * length_px / count) for i in range(count + 1)]


def draw_marks(image: Image.Image, marks: Marks) -> Image.Image:
    """The visual prompt: an RGB copy of ``image`` with thin lines and numbered regions, readable on any background."""
    marked = image.convert("RGB")
    if marked is image:
        marked = image.copy()
    overlay = Image.new("RGBA", marked.size)
    draw = ImageDraw.Draw(overlay)
    ys, xs = edges_px(marks.rows, marked.height), edges_px(marks.columns, marked.width)
    _draw_lines(draw, xs, ys, marked.size)
    size_px = _font_size_px(xs, ys, marks.kind)
    if marks.kind == "bands":
        for i in range(marks.rows):
            _label(draw, str(i + 1), (size_px * 0.5, (ys[i] + ys[i + 1]) / 2), size_px)
        for j in range(marks.columns):
            _label(draw, str(j + 1), ((xs[j] + xs[j + 1]) / 2, size_px * 0.6), size_px)
    else:
        for i in range(marks.rows):
            for j in range(marks.columns):
                centre = ((xs[j] + xs[j + 1]) / 2, (ys[i] + ys[i + 1]) / 2)
                _label(draw, str(i * marks.columns + j + 1), centre, size_px)
    marked.paste(overlay, (0, 0), overlay)
    return marked


def visual_prompt(
    image: Image.Image, marks: Marks, canvas_px: tuple[int, int] | None = None, max_side_px: int | None = None
) -> Image.Image:
    """`draw_marks` on ``image`` in the size that a reasoner asks for (`Reasoner.canvas_px`, `Reasoner.max_side_px`)."""
    if canvas_px is not None and image.size != canvas_px:
        image = image.resize(canvas_px, Image.Resampling.BILINEAR)
    elif canvas_px is None and max_side_px is not None:
        image = fit_marks(image, marks, max_side_px)
    return draw_marks(image, marks)


def fit_marks(image: Image.Image, marks: Marks, max_side_px: int) -> Image.Image:
    """``image``, shrunk to ``max_side_px`` on its longest side, though never below what keeps the marks readable.

    Readable are regions of `MIN_REGION_PX` on both sides. An image is never enlarged.
    """
    bound = max_side_px / max(image.size)
    readable = MIN_REGION_PX * max(marks.columns / image.width, marks.rows / image.height)
    scale = max(bound, readable)
    if scale >= 1:
        return image
    size_px = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size_px, Image.Resampling.LANCZOS)


def regions_box(regions: Regions, marks: Marks, width_px: int, height_px: int) -> Box | None:
    """The bounding box of all named regions in image pixels; None where no region is named."""
    if regions.empty:
        return None
    rows, columns = set(regions.rows), set(regions.columns)
    for cell in regions.cells:
        rows.add((cell - 1) // marks.columns + 1)
        columns.add((cell - 1) % marks.columns + 1)
    if min(rows) < 1 or max(rows) > marks.rows or min(columns) < 1 or max(columns) > marks.columns:
        raise ValueError(f"{regions} lies outside {marks.rows} x {marks.columns} marks: ids count from 1")
    ys, xs = edges_px(marks.rows, height_px), edges_px(marks.columns, width_px)
    left, right = xs[min(columns) - 1], xs[max(columns)]
    top, bottom = ys[min(rows) - 1], ys[max(rows)]
    return Box(left, top, max(right, left + 1), max(bottom, top + 1))


def cell_shares(mask: BoolMask, marks: Marks) -> npt.NDArray[np.float64]:
    """The share of each cell that ``mask``, bool ``(height, width)``, covers; ``(rows, columns)`` in [0, 1]."""
    ys, xs = edges_px(marks.rows, mask.shape[0]), edges_px(marks.columns, mask.shape[1])
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.int64), ys[:-1], axis=0), xs[:-1], axis=1)
    return np.asarray(sums / np.outer(np.diff(ys), np.diff(xs)), dtype=np.float64)


def mask_regions(mask: BoolMask, marks: Marks) -> Regions:
    """The regions that ``mask``, bool ``(height, width)``, touches; empty for an empty mask."""
    touched = cell_shares(mask, marks) > 0
    if marks.kind == "cells":
        return Regions(cells=tuple(int(i) + 1 for i in np.flatnonzero(touched)))
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    return Regions(rows=tuple(int(i) + 1 for i in rows), columns=tuple(int(j) + 1 for j in columns))


def _draw_lines(draw: ImageDraw.ImageDraw, xs: list[int], ys: list[int], size: tuple[int, int]) -> None:
    """A light line beside a dark one: one of the two stands out on every background."""
    for x in xs[1:-1]:
        draw.line([(x - 1, 0), (x - 1, size[1])], fill=(0, 0, 0, 60))
        draw.line([(x, 0), (x, size[1])], fill=(255, 255, 255, 90))
    for y in ys[1:-1]:
        draw.line([(0, y - 1), (size[0], y - 1)], fill=(0, 0, 0, 60))
        draw.line([(0, y), (size[0], y)], fill=(255, 255, 255, 90))


def _font_size_px(xs: list[int], ys: list[int], kind: str) -> int:
    shortest = min(*np.diff(xs), *np.diff(ys))
    return int(np.clip(shortest * (0.38 if kind == "bands" else 0.34), 8, 40))


@lru_cache(maxsize=64)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _label(draw: ImageDraw.ImageDraw, text: str, centre: tuple[float, float], size_px: int) -> None:
    """White digits with a dark outline."""
    outline = max(1, size_px // 9)
    draw.text(
        centre, text, fill=(255, 255, 255, 235), font=_font(size_px), anchor="mm",
        stroke_width=outline, stroke_fill=(0, 0, 0, 200),
    )  # fmt: skip

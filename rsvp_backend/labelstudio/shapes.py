"""What an annotator can mark an area with -> a mask: brush, bitmask, polygon, rectangle, ellipse.

Coordinates of polygons, rectangles and ellipses are percentages of the image's width and height (x to the right, y
down). A pixel belongs to a shape if its centre lies in it, on the left and upper outline included, on the right and
lower one not: a rectangle that was made of whole pixels covers exactly these, half-open as `Box` is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend.errors import RsvpError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.containers import overload
from rsvp_backend.labelstudio.pixels import data_url_bytes
from rsvp_backend.types import BoolMask

KINDS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")
TYPES = frozenset(KINDS) | {f"{kind}labels" for kind in KINDS}  # with labels of its own, or with a Labels tag beside it
_FARTHEST_PCT = 1e6
_PNG_BYTES_PER_PIXEL = 8

Point = tuple[float, float]


class ShapeError(RsvpError, ValueError):
    """A region's value is damaged, or not of a kind that this package reads."""


def read_mask(kind: str, value: Mapping[str, Any], height_px: int, width_px: int) -> BoolMask:
    """A result's ``value`` -> bool ``(height_px, width_px)``; ``kind`` is its ``type``, one of `TYPES`.

    True where the alpha of a brush or bitmask is over 127. What reaches beyond the image is cut off; the mask may be
    empty. Raises `ShapeError` or `RleError` on damage, before anything of another size is allocated.
    """
    match kind.removesuffix("labels"):
        case "brush":
            return _brush(value, height_px, width_px)
        case "bitmask":
            return bitmask(value.get("imageDataURL"), height_px, width_px)
        case "polygon":
            return polygon(_points(value, height_px, width_px), height_px, width_px)
        case "rectangle":
            return polygon(_corners(value, height_px, width_px), height_px, width_px)
        case "ellipse":
            return _ellipse(value, height_px, width_px)
    raise ShapeError(f"type {kind!r:.40} is no area: one of {', '.join(KINDS)} is expected")


def polygon(points_px: Sequence[Point], height_px: int, width_px: int) -> BoolMask:
    """The inside of a closed polygon by the even-odd rule; points (x, y) in image pixels, the last joins the first."""
    toggles = np.zeros((height_px, width_px + 1), dtype=np.bool_)
    for edge in zip(points_px, [*points_px[1:], *points_px[:1]], strict=True):
        # Downwards, whichever way it is drawn: an edge there and back must cancel out to the last bit.
        (x0, y0), (x1, y1) = sorted(edge, key=lambda point: (point[1], point[0]))
        top, bottom = _first_centre(y0, height_px), _first_centre(y1, height_px)
        if top < bottom:
            rows = np.arange(top, bottom)
            crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(crossings - 0.5), 0, width_px).astype(np.intp)
            toggles[rows, columns] ^= True
    mask: BoolMask = np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
    return np.ascontiguousarray(mask)


def bitmask(url: object, height_px: int, width_px: int) -> BoolMask:
    """``data:image/png;base64,...`` with transparency -> bool ``(height_px, width_px)``, true where alpha > 127."""
    if not isinstance(url, str) or not url.startswith("data:"):
        raise ShapeError(f"imageDataURL is {url!r:.40}: a data URL with a PNG is expected")
    try:
        data = data_url_bytes(url, 2**16 + _PNG_BYTES_PER_PIXEL * height_px * width_px)
        if (much := overload(data)) is not None:
            raise ShapeError(f"the bitmask has {much}: a PNG as Label Studio writes it is expected")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width_px, height_px):
                raise ShapeError(f"the bitmask is {image.width} x {image.height}, its image {width_px} x {height_px}")
            if not image.has_transparency_data:
                raise ShapeError(f"the bitmask has no transparency ({image.mode}): the mask is expected in its alpha")
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    except ShapeError:
        raise
    except Exception as error:  # on a damaged file the decoder raises nearly anything
        raise ShapeError(f"the bitmask is not a readable PNG: {error}") from None
    mask: BoolMask = alpha > 127
    return mask


def _brush(value: Mapping[str, Any], height_px: int, width_px: int) -> BoolMask:
    packed = value.get("rle")
    if value.get("format") != "rle" or not isinstance(packed, list):
        raise ShapeError(f"the brush has format {value.get('format')!r:.40}: 'rle' with a list 'rle' is expected")
    return rle.decode(packed, height_px, width_px)


def _points(value: Mapping[str, Any], height_px: int, width_px: int) -> list[Point]:
    points = value.get("points")
    if not isinstance(points, list) or len(points) < 3 or not all(_is_pair(point) for point in points):
        raise ShapeError(f"the polygon's points are {points!r:.60}: three or more [x, y] in percent are expected")
    return [(_number(x, "x") / 100 * width_px, _number(y, "y") / 100 * height_px) for x, y in points]


def _corners(value: Mapping[str, Any], height_px: int, width_px: int) -> list[Point]:
    """``rotation`` degrees turn a rectangle clockwise about its upper left corner, measured in pixels."""
    left, width = (_number(value.get(name), name) / 100 * width_px for name in ("x", "width"))
    top, height = (_number(value.get(name), name) / 100 * height_px for name in ("y", "height"))
    if width <= 0 or height <= 0:
        raise ShapeError(f"the rectangle is {width:g} x {height:g} px: more than 0 is expected")
    cos, sin = _turn(value)
    offsets = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    return [(left + u * cos - v * sin, top + u * sin + v * cos) for u, v in offsets]


def _ellipse(value: Mapping[str, Any], height_px: int, width_px: int) -> BoolMask:
    """``x, y`` is the centre; ``rotation`` degrees turn it clockwise about that."""
    x, radius_x = (_number(value.get(name), name) / 100 * width_px for name in ("x", "radiusX"))
    y, radius_y = (_number(value.get(name), name) / 100 * height_px for name in ("y", "radiusY"))
    if radius_x <= 0 or radius_y <= 0:
        raise ShapeError(f"the ellipse's radii are {radius_x:g} and {radius_y:g} px: more than 0 is expected")
    cos, sin = _turn(value)
    dx = np.arange(0.5, width_px) - x
    dy = (np.arange(0.5, height_px) - y)[:, None]
    inside: BoolMask = ((dx * cos + dy * sin) / radius_x) ** 2 + ((dy * cos - dx * sin) / radius_y) ** 2 < 1.0
    return inside


def _first_centre(edge_px: float, limit_px: int) -> int:
    """Index of the first pixel whose centre is at ``edge_px`` or beyond, within ``0..limit_px``."""
    return min(max(math.ceil(edge_px - 0.5), 0), limit_px)


def _turn(value: Mapping[str, Any]) -> Point:
    degrees = _number(value.get("rotation", 0), "rotation") % 360
    if degrees % 90 == 0:  # cos(90 degrees) is not quite 0: a right angle must stay on the pixel grid
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(degrees // 90)]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _is_pair(point: object) -> bool:
    return isinstance(point, list | tuple) and len(point) == 2


def _number(number: object, name: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _FARTHEST_PCT:
        raise ShapeError(f"{name} is {number!r:.30}: a number is expected")
    return float(number)

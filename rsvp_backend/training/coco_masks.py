"""COCO's three ways to write a mask: polygons, run lengths as numbers, run lengths packed into a string.

Polygons are filled by `pycocotools`, as in the evaluations that published figures come from. Run lengths are decoded
here: its C code trusts them and reads past the end of a damaged string.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask

_FARTHEST = 4  # image sizes that a polygon may reach beyond the image: filling walks along every edge


@dataclass(frozen=True, slots=True, eq=False)
class CocoMask:
    """``segmentations``: values of annotations' ``segmentation``; the mask is their union, of the image's size."""

    segmentations: tuple[Any, ...]
    height_px: int
    width_px: int

    def decode(self) -> BoolMask:
        """Bool ``(height, width)``. Raises `SampleError` where one of them is damaged."""
        mask: BoolMask = np.zeros((self.height_px, self.width_px), dtype=np.bool_)
        for segmentation in self.segmentations:
            mask |= decode(segmentation, self.height_px, self.width_px)
        return mask


def is_segmentation(value: object) -> bool:
    """Whether ``value`` has the outer form of a ``segmentation``; `decode` finds what is wrong inside."""
    if isinstance(value, Mapping):
        return "counts" in value
    return isinstance(value, list) and bool(value) and all(isinstance(part, list | Mapping) for part in value)


def decode(segmentation: object, height_px: int, width_px: int) -> BoolMask:
    """One annotation's ``segmentation`` -> bool ``(height_px, width_px)``. Raises `SampleError`.

    A list of polygons ``[x0, y0, x1, y1, ...]`` in pixels, a run-length object, or a list of those.
    """
    if isinstance(segmentation, Mapping):
        return _runs(segmentation, height_px, width_px)
    if not is_segmentation(segmentation):
        raise SampleError(f"the segmentation is {segmentation!r:.60}: polygons or run lengths are expected")
    assert isinstance(segmentation, list)  # is_segmentation says so
    mask: BoolMask = np.zeros((height_px, width_px), dtype=np.bool_)
    for part in segmentation:
        if isinstance(part, Mapping):
            mask |= _runs(part, height_px, width_px)
    polygons = [_checked(part, height_px, width_px) for part in segmentation if isinstance(part, list)]
    return mask | _filled(polygons, height_px, width_px) if polygons else mask


def _checked(polygon: Sequence[object], height_px: int, width_px: int) -> list[float]:
    """A polygon's coordinates, in bounds that filling can stand."""
    numbers = [float(n) for n in polygon if isinstance(n, int | float) and not isinstance(n, bool)]
    farthest = _FARTHEST * max(height_px, width_px)
    if len(numbers) != len(polygon) or len(numbers) < 6 or len(numbers) % 2:
        raise SampleError(f"a polygon is {polygon!r:.60}: three or more x, y pairs are expected")
    if not all(math.isfinite(n) and abs(n) <= farthest for n in numbers):
        raise SampleError(f"a polygon reaches far beyond its image of {width_px} x {height_px} px")
    return numbers


def _filled(polygons: list[list[float]], height_px: int, width_px: int) -> BoolMask:
    return _runs(coco.merge(coco.frPyObjects(polygons, height_px, width_px)), height_px, width_px)


def _runs(value: Mapping[str, Any], height_px: int, width_px: int) -> BoolMask:
    """``{"size": [height, width], "counts": runs}``: column by column, empty pixels first."""
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height_px, width_px]:
        raise SampleError(f"run lengths are for {size!r:.30}, the image is {height_px} high and {width_px} wide")
    if isinstance(counts, str | bytes):
        counts = unpacked(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise SampleError(f"run lengths are {counts!r:.60}: whole numbers of 0 or more are expected")
    if sum(counts) != height_px * width_px:
        raise SampleError(f"run lengths add up to {sum(counts)} pixels, the image has {height_px * width_px}")
    inside = np.arange(len(counts)) % 2 == 1
    flat: BoolMask = np.repeat(inside, np.asarray(counts, dtype=np.int64))
    return np.ascontiguousarray(flat.reshape(width_px, height_px).T)


def unpacked(packed: bytes) -> list[int]:
    """COCO's string of run lengths -> the runs; from the fourth on they are stored as differences to the last but one.

    Each character holds 5 bits, the lowest first, and in bit 5 whether more follow; bit 4 of the last one is the sign.
    """
    counts: list[int] = []
    number, shift = 0, 0
    for character in packed:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise SampleError(f"packed run lengths hold {packed[:20]!r}: damaged")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise SampleError("packed run lengths end in the middle of a number: cut off")
    return counts

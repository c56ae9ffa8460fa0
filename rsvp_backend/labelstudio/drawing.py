"""A mask -> the value of a result, in the kind of the config's mask tag: brush, bitmask, polygon, rectangle.

Brush and bitmask hold every pixel. A polygon is one line around the mask: holes are filled, and parts that lie apart
are joined by a line of no width, so that one region stays one region. A rectangle is the mask's tight box. What is lost
by that is told beside the mask (see `Drawn`). The other way round: `shapes`.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from rsvp_backend.labelstudio import rle, shapes
from rsvp_backend.labelstudio.tags import Kind
from rsvp_backend.types import BoolMask

MOST_PARTS = 32
_FINEST_SHARE = 0.05  # of the square root of a part's area: a tolerance in pixels must not eat small objects
_PERCENT_DECIMALS = 4

_Ring = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drawn:
    """``value``: the result's, less its labels. ``iou``: of what it covers with the mask; 1.0 where nothing is lost.

    ``holes``: how many were filled.
    """

    value: dict[str, Any]
    iou: float = 1.0
    holes: int = 0


def draw(mask: BoolMask, kind: Kind, tolerance_px: float = 1.0) -> Drawn:
    """Bool ``(height, width)``, at least one pixel True, as a result's value that `shapes.read_mask` reads.

    ``tolerance_px``: how far a polygon may be from the mask's edge; small parts are followed more closely. Raises
    `RleError` or ValueError on a mask that is empty or no image.
    """
    if kind == "brush":
        return Drawn({"format": "rle", "rle": rle.encode(mask)})
    if not mask.any():
        raise ValueError(f"the mask is empty: a {kind} needs a pixel")
    if kind == "bitmask":
        return Drawn({"imageDataURL": _png(mask)})
    value, holes = _polygon(mask, tolerance_px) if kind == "polygon" else (_rectangle(mask), 0)
    iou = _iou(mask, shapes.read_mask(kind, value, *mask.shape))
    if iou < 1.0:
        _tell_once(kind)
    return Drawn(value, round(iou, 4), holes)


def _png(mask: BoolMask) -> str:
    """Black where the mask is, transparent elsewhere, as Label Studio writes it."""
    pixels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    pixels[..., 3] = mask * np.uint8(255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _rectangle(mask: BoolMask) -> dict[str, Any]:
    height_px, width_px = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return {
        "x": left / width_px * 100,
        "y": top / height_px * 100,
        "width": (right - left) / width_px * 100,
        "height": (bottom - top) / height_px * 100,
        "rotation": 0,
    }


def _polygon(mask: BoolMask, tolerance_px: float) -> tuple[dict[str, Any], int]:
    """The value, and how many holes it fills. Parts beyond the `MOST_PARTS` largest are left out."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labels)
    ring: _Ring = np.empty((0, 2))
    holes = 0
    for part in np.argsort(-sizes, kind="stable")[:MOST_PARTS]:
        inside = labels[boxes[part]] == part + 1
        filled = np.asarray(ndimage.binary_fill_holes(inside), dtype=np.bool_)
        holes += int(ndimage.label(filled & ~inside)[1])
        finest = min(tolerance_px, _FINEST_SHARE * float(filled.sum()) ** 0.5)
        rows, columns = boxes[part]
        ring = _joined(ring, _outline(filled, finest) + np.array([columns.start, rows.start]))
    points = (ring / mask.shape[::-1] * 100).clip(0, 100).round(_PERCENT_DECIMALS).tolist()
    return {"points": points, "closed": True}, holes


def _outline(filled: BoolMask, tolerance_px: float) -> _Ring:
    """The points (x, y) around one part without holes, in its own pixels, float64 ``(n, 2)``; not closed."""
    contours = find_contours(np.pad(filled, 1).astype(np.float64), 0.5)  # type: ignore[no-untyped-call]
    contour = np.asarray(max(contours, key=len), dtype=np.float64)
    simple = np.asarray(approximate_polygon(contour, tolerance_px))  # type: ignore[no-untyped-call]
    chosen = simple if len(simple) > 3 else contour
    return chosen[:-1, ::-1] - 0.5  # pixel centres are whole numbers there, and the padding added one


def _joined(ring: _Ring, other: _Ring) -> _Ring:
    """One ring: to the nearest point of ``other``, around it, and back the same way."""
    if not len(ring):
        return other
    distances = ((ring[:, None] - other[None]) ** 2).sum(axis=2)
    here, there = divmod(int(distances.argmin()), len(other))
    around = np.concatenate([other[there:], other[: there + 1]])
    return np.concatenate([ring[: here + 1], around, ring[here:]])


def _iou(one: BoolMask, other: BoolMask) -> float:
    return int((one & other).sum()) / int((one | other).sum())


@functools.cache
def _tell_once(kind: Kind) -> None:
    lost = {"polygon": "holes are filled, edges simplified", "rectangle": "a mask becomes its tight box"}
    _log.warning(
        "the project's masks are drawn as %ss: %s; BrushLabels and BitmaskLabels keep every pixel", kind, lost[kind]
    )

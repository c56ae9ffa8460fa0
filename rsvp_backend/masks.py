"""Masks after the segmenter: clean, paste back into the image, and score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rsvp_backend.types import BoolMask, Box, Segmentation


@dataclass(frozen=True, slots=True)
class Cleanup:
    """``min_area``: specks and holes smaller than this share of the mask's own area are removed (0 keeps all)."""

    min_area: float = 0.02

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_area < 1.0:
            raise ValueError(f"min_area is {self.min_area}: 0.0 (keep all) up to 1.0 is expected")


def clean(mask: BoolMask, cleanup: Cleanup) -> BoolMask:
    """Remove small specks, then fill small holes; bool ``(h, w)`` in, the same out."""
    area = int(mask.sum())
    if area == 0 or cleanup.min_area == 0:
        return mask
    limit_px = cleanup.min_area * area
    kept = _drop_small(mask, limit_px)
    return ~_drop_small(~kept, limit_px)


def paste(crop_mask: BoolMask, box: Box, width_px: int, height_px: int) -> BoolMask:
    """Put a crop's mask, bool ``(box.height, box.width)``, into an empty image mask, bool ``(height_px, width_px)``."""
    if crop_mask.shape != (box.height, box.width):
        raise ValueError(f"crop mask is {crop_mask.shape}, its box {box.xyxy} asks for {(box.height, box.width)}")
    mask = np.zeros((height_px, width_px), dtype=np.bool_)
    mask[box.top : box.bottom, box.left : box.right] = crop_mask
    return mask


def stability(logits: npt.NDArray[np.float32], offset: float = 1.0) -> float:
    """IoU of the masks at thresholds ``+offset`` and ``-offset`` (Segment Anything's stability score); 0 if empty."""
    inner, outer = int((logits > offset).sum()), int((logits > -offset).sum())
    return inner / outer if outer else 0.0


def score(found: Segmentation) -> float:
    """Confidence in [0, 1]: predicted IoU times stability. Low means worth a person's look."""
    return float(np.clip(found.predicted_iou, 0.0, 1.0)) * stability(found.logits)


def _drop_small(mask: BoolMask, limit_px: float) -> BoolMask:
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    keep = sizes >= limit_px
    keep[0] = False
    if not keep.any():
        return mask
    return np.asarray(keep[labels], dtype=np.bool_)

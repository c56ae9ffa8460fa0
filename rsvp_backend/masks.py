"""Masks after the segmenter: clean, paste back into the image, and score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rsvp_backend.types import BoolMask, Box, Segmentation


@dataclass(frozen=True, slots=True)
class Cleanup:
    """``min_area_px``: specks and holes with fewer pixels (of the original image) go; 0 keeps all.

    ``components``: ``all`` that remain, or only the ``largest``.
    """

    min_area_px: int = 64
    components: Literal["all", "largest"] = "all"

    def __post_init__(self) -> None:
        if self.min_area_px < 0:
            raise ValueError(f"min_area_px is {self.min_area_px}: 0 (keep all) or more is expected")
        if self.components not in ("all", "largest"):
            raise ValueError(f"components is {self.components!r}: 'all' or 'largest' is expected")


def clean(mask: BoolMask, cleanup: Cleanup) -> BoolMask:
    """Remove small specks, then fill small holes; bool ``(h, w)`` in, the same out.

    A mask of specks only keeps its largest: an object may be that small.
    """
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = sizes == sizes.max()
    keep = largest if cleanup.components == "largest" else (sizes >= cleanup.min_area_px) | largest
    keep[0] = False
    return _without_holes(np.asarray(keep[labels], dtype=np.bool_), cleanup.min_area_px)


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
    """Confidence in [0, 1]: the decoder's predicted IoU, clipped, times stability. Low means worth a person's look."""
    return float(np.clip(found.predicted_iou, 0.0, 1.0)) * stability(found.logits)


def _without_holes(mask: BoolMask, min_area_px: int) -> BoolMask:
    """Fill background that the mask encloses, where it has fewer than ``min_area_px`` pixels."""
    labels, count = ndimage.label(~mask)
    if count <= 1 or min_area_px == 0:
        return mask
    fill = np.bincount(labels.ravel()) < min_area_px
    fill[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = False
    return np.asarray(mask | fill[labels], dtype=np.bool_)

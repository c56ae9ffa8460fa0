"""gIoU and cIoU of reasoning segmentation, by the convention of LISA's evaluation (arXiv 2308.00692)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsvp_backend.types import BoolMask


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels in the intersection and the union of a predicted and a true mask."""

    intersection_px: int
    union_px: int

    @classmethod
    def of(cls, predicted: BoolMask, truth: BoolMask) -> Overlap:
        """Both bool ``(height, width)``."""
        if predicted.shape != truth.shape:
            raise ValueError(
                f"predicted mask is {predicted.shape}, the true one {truth.shape}: equal shapes are expected"
            )
        return cls(int((predicted & truth).sum()), int((predicted | truth).sum()))

    @property
    def iou(self) -> float:
        """1.0 where both masks are empty: nothing was there and nothing was found."""
        return self.intersection_px / self.union_px if self.union_px else 1.0


def giou(overlaps: Sequence[Overlap]) -> float:
    """Mean IoU over samples."""
    return float(np.mean([overlap.iou for overlap in overlaps])) if overlaps else float("nan")


def ciou(overlaps: Sequence[Overlap]) -> float:
    """All intersections over all unions; large objects weigh more. 1.0 where every union is empty."""
    union = sum(overlap.union_px for overlap in overlaps)
    return sum(overlap.intersection_px for overlap in overlaps) / union if union else 1.0


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ``values``."""
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(data), size=(draws, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)

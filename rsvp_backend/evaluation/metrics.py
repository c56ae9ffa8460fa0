"""gIoU, cIoU, mIoU, P@X and box accuracy, by the conventions that published figures follow, with bootstrap intervals.

One sample is one (image, instruction). Pixels that a data set marks as to be ignored count neither as found nor as
missed. The conventions differ in what an empty answer to an empty truth is worth, and in a small term that keeps a
division from failing; see `CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsvp_backend.types import BoolMask

BoxXyxy = tuple[float, float, float, float]
"""left, top, right, bottom in pixels; ``right`` and ``bottom`` are not inside."""

_DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels in the intersection and the union of a predicted and a true mask."""

    intersection_px: int
    union_px: int

    @classmethod
    def of(cls, predicted: BoolMask, truth: BoolMask, ignore: BoolMask | None = None) -> Overlap:
        """All bool ``(height, width)``; pixels of ``ignore`` are taken out of both masks."""
        for name, mask in (("true", truth), ("ignore", ignore)):
            if mask is not None and mask.shape != predicted.shape:
                raise ValueError(
                    f"predicted mask is {predicted.shape}, the {name} one {mask.shape}: equal shapes are expected"
                )
        both, either = predicted & truth, predicted | truth
        if ignore is not None:
            both, either = both & ~ignore, either & ~ignore
        return cls(int(both.sum()), int(either.sum()))

    @property
    def iou(self) -> float:
        """1.0 where both masks are empty: nothing was there and nothing was found."""
        return self.intersection_px / self.union_px if self.union_px else 1.0


@dataclass(frozen=True, slots=True)
class Convention:
    """``sample_eps`` is added to the union of each sample, ``total_eps`` to that of the whole set; ``both_empty``: the
    IoU of a sample where nothing was there and nothing was found."""

    name: str
    sample_eps: float = 0.0
    total_eps: float = 0.0
    both_empty: float = 1.0

    def iou(self, overlap: Overlap) -> float:
        """One sample's IoU."""
        if not overlap.union_px:
            return self.both_empty
        return overlap.intersection_px / (overlap.union_px + self.sample_eps)


EXACT = Convention("exact")
CONVENTIONS = {
    "exact": EXACT,
    "lisa": Convention("lisa", 1e-5, 1e-10),  # LISA's train_ds.py, arXiv 2308.00692
    "evf": Convention("evf", 1e-10, 1e-10),  # EVF-SAM's eval.py, arXiv 2406.20076
    "seg-zero": Convention("seg-zero", both_empty=0.0),  # Seg-Zero's calculate_iou.py, arXiv 2503.06520
}


def giou(overlaps: Sequence[Overlap], convention: Convention = EXACT) -> float:
    """Mean IoU over samples; nan for none."""
    return float(np.mean([convention.iou(overlap) for overlap in overlaps])) if overlaps else float("nan")


def ciou(overlaps: Sequence[Overlap], convention: Convention = EXACT) -> float:
    """All intersections over all unions; large objects weigh more. Exactly, 1.0 where every union is empty."""
    union = sum(overlap.union_px for overlap in overlaps) + convention.total_eps
    return sum(overlap.intersection_px for overlap in overlaps) / union if union else convention.both_empty


def precision_at(ious: Sequence[float], threshold: float) -> float:
    """The share of ``ious`` that reach ``threshold`` (P@X); nan for none."""
    return float(np.mean([iou >= threshold for iou in ious])) if ious else float("nan")


def box_iou(a: BoxXyxy, b: BoxXyxy) -> float:
    """IoU of two boxes; 0.0 where neither has an area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = _area(a) + _area(b) - both
    return both / union if union > 0 else 0.0


def mask_box(mask: BoolMask) -> BoxXyxy | None:
    """The smallest box around ``mask``, bool ``(height, width)``; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def enclosing(boxes: Iterable[BoxXyxy]) -> BoxXyxy | None:
    """The smallest box around all ``boxes``; None for none."""
    edges = list(zip(*boxes, strict=True))
    return (min(edges[0]), min(edges[1]), max(edges[2]), max(edges[3])) if edges else None


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ``values``."""
    return ratio_interval(values, np.ones(len(values)), seed=seed, draws=draws)


def ratio_interval(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """The bootstrap interval of ``sum(numerators) / sum(denominators)``, drawing pairs with replacement.

    With ones below it is that of a mean, with sums and counts of groups that of a mean over all members of groups
    drawn whole, with intersections and unions that of cIoU. Draws with 0 below are left out; nan for no pairs.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(above):
        return float("nan"), float("nan")
    rng, ratios, rows = (
        np.random.default_rng(seed),
        list[npt.NDArray[np.float64]](),
        max(1, _DRAWN_AT_ONCE // len(above)),
    )
    for start in range(0, draws, rows):
        picks = rng.integers(len(above), size=(min(rows, draws - start), len(above)))
        total = below[picks].sum(axis=1)
        ratios.append((above[picks].sum(axis=1))[total > 0] / total[total > 0])
    drawn = np.concatenate(ratios)
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def grouped_interval(
    numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """`ratio_interval` where whole groups are drawn: instructions on one image are alike."""
    _, group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    above, below = (np.bincount(group, np.asarray(values)) for values in (numerators, denominators))
    return ratio_interval(above, below, seed=seed)


def _area(box: BoxXyxy) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

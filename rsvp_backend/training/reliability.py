"""What predicted IoUs are worth: of those that predict about as much, how much is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Bin:
    """Corrections whose predicted IoU lies in ``[low, high)``: how many, and what they predict and reach on average."""

    low: float
    high: float
    count: int
    predicted: float
    reached: float


def reliability(predicted: npt.NDArray[np.float64], reached: npt.NDArray[np.float64], bins: int = 5) -> tuple[Bin, ...]:
    """``predicted`` and ``reached`` in [0, 1], pairs -> equally wide bins from 0 to 1, without the empty ones."""
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    return tuple(
        Bin(n / bins, (n + 1) / bins, int(own.sum()), float(predicted[own].mean()), float(reached[own].mean()))
        for n in range(bins)
        if (own := place == n).any()
    )


def expected_error(table: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of predicted and reached, weighted by count; nan for no bins."""
    total = sum(b.count for b in table)
    return sum(b.count * abs(b.predicted - b.reached) for b in table) / total if total else float("nan")

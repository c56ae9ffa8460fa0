"""Whether a fine-tuned version replaces the current one, and what its score means: both on held-out corrections.

A version is promoted where the paired bootstrap leaves no doubt that it is better on corrections that it has not seen,
and where what was known before is still known. A confused set of corrections (wrong objects, missing masks) can pass
for a gain where the version learns to answer "nothing"; so shown objects are also looked at by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from rsvp_backend.evaluation.metrics import ratio_interval
from rsvp_backend.training.reliability import Bin, reliability
from rsvp_backend.training.scoring import Scores

_FEWEST_TO_FIT = 10


@dataclass(frozen=True, slots=True)
class Decision:
    """``interval``: of the mean gain in IoU on held-out corrections; ``reasons``: a sentence each, for and against."""

    promote: bool
    reasons: tuple[str, ...]
    interval: tuple[float, float]


def decide(
    before: Scores,
    after: Scores,
    replay_before: Scores,
    replay_after: Scores,
    *,
    fewest: int = 3,
    largest_loss: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    measure: tuple[str, str] = ("IoU", "corrections"),
) -> Decision:
    """Compare two versions on the same held-out corrections and on the same replay.

    ``fewest``: held-out tasks below which nothing is promoted; ``largest_loss``: mean IoU (gIoU) that may be lost on
    replay, and on held-out corrections that show an object. Without replay scores that condition is not checked.
    ``measure``: what the scores are, and of what, for the reasons.
    """
    if len(before.ious) != len(after.ious) or len(replay_before.ious) != len(replay_after.ious):
        raise ValueError("scores before and after are of different corrections: pairs of the same ones are expected")
    tasks = len(set(before.tasks))
    if tasks < fewest:
        return Decision(
            False, (f"only {tasks} tasks are held out: {fewest} are needed to compare",), (float("nan"),) * 2
        )
    low, high = gain_interval(before, after, confidence, seed)
    name, things = measure
    gain = f"{name} on {len(before.ious)} held-out {things} {before.mean:.3f} -> {after.mean:.3f}"
    checks = [(low > 0, f"{gain}: gain between {low:+.3f} and {high:+.3f}")]
    shown = [not empty for empty in before.empty]
    if any(shown) and not all(shown):
        checks.append(_loss(f"held-out {things} that show an object", name, before, after, shown, largest_loss))
    if replay_before.ious:
        checks.append(
            _loss("replay", name, replay_before, replay_after, [True] * len(replay_before.ious), largest_loss)
        )
    return Decision(all(good for good, _ in checks), tuple(text for _, text in checks), (low, high))


def gain_interval(before: Scores, after: Scores, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean paired gain in IoU; whole tasks are drawn, as regions of one are alike."""
    gains = np.asarray(after.ious) - np.asarray(before.ious)
    _, task = np.unique(before.tasks, return_inverse=True)
    sums, counts = np.bincount(task, gains), np.bincount(task).astype(np.float64)
    return ratio_interval(sums, counts, confidence=confidence, seed=seed, draws=4000)


def _loss(
    where: str, name: str, before: Scores, after: Scores, which: Sequence[bool], largest: float
) -> tuple[bool, str]:
    pairs = zip(before.ious, after.ious, which, strict=True)
    lost = float(np.mean([old - new for old, new, wanted in pairs if wanted]))
    return lost <= largest, f"{where}: {lost:.3f} of mean {name} lost, at most {largest} is allowed"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Predicted IoU -> expected IoU: straight lines between ``knots``, pairs in rising order; no knots: as it is."""

    knots: tuple[tuple[float, float], ...] = ()
    table: tuple[Bin, ...] = ()

    def apply(self, score: float) -> float:
        """``score`` in [0, 1] -> calibrated, in [0, 1]; never turns an order round."""
        clipped = min(1.0, max(0.0, score))
        if not self.knots:
            return clipped
        xs, ys = zip(*self.knots, strict=True)
        return float(np.interp(clipped, xs, ys))

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; see `from_dict`."""
        rows = [[b.low, b.high, b.count, b.predicted, b.reached] for b in self.table]
        return {"knots": [list(knot) for knot in self.knots], "table": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """The inverse of `to_dict`."""
        return cls(tuple((x, y) for x, y in data["knots"]), tuple(Bin(*row) for row in data["table"]))


def calibrate(scores: Scores, bins: int = 5) -> Calibration:
    """Isotonic regression of the reached on the predicted IoU, and the reliability table before it.

    Below ten corrections there are no knots: a curve through so few points would be noise.
    """
    predicted, reached = np.clip(scores.predicted, 0, 1), np.asarray(scores.ious, dtype=np.float64)
    table = reliability(predicted, reached, bins)
    if len(reached) < _FEWEST_TO_FIT:
        return Calibration((), table)
    order = np.argsort(predicted, kind="stable")
    x, y = predicted[order], isotonic_regression(reached[order]).x
    knots = []
    for level in np.unique(y):  # a level of the step function is one knot, in its middle
        knots.append((float(x[y == level].mean()), float(np.clip(level, 0, 1))))
    return Calibration(tuple(knots), table)

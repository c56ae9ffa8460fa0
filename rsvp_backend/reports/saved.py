"""Minutes saved: what a task takes by hand, less what it takes with a prediction, by Label Studio's ``lead_time``.

    saved per answer = median(seconds by hand) - median(seconds with a prediction)
    saved in all     = saved per answer x answers with a prediction

*With a prediction*: the answer began with at least one predicted mask, whatever became of it. *By hand*: every region
was drawn and no predicted one had to be deleted (no prediction, or an empty one). Medians, for ``lead_time`` goes on
while a tab is left open. Tasks are not assigned to the two groups by chance, so the difference is no proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rsvp_backend.reports.answers import Answer, Kind
from rsvp_backend.reports.summary import Spread

FEWEST = 5
_DRAWS = 2000
_NAN = float("nan")
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Saved:
    """``source`` of the time by hand: measured, given, or unknown. Seconds; ``interval_s``: 95 %, by bootstrap over
    tasks; nan where it is unknown, and ``why`` says so."""

    source: str
    by_hand: int
    assisted: int
    by_hand_s: float = _NAN
    assisted_s: float = _NAN
    per_answer_s: float = _NAN
    interval_s: tuple[float, float] = (_NAN, _NAN)
    why: str = ""

    @property
    def known(self) -> bool:
        return not self.why

    @property
    def total_s(self) -> float:
        return self.per_answer_s * self.assisted

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval_s
        return {
            "known": self.known, "why_not": self.why, "time_by_hand": self.source, "by_hand_answers": self.by_hand,
            "assisted_answers": self.assisted, "by_hand_s": self.by_hand_s, "assisted_s": self.assisted_s,
            "per_answer_s": self.per_answer_s, "per_answer_interval_s": [low, high], "total_s": self.total_s,
            "total_interval_s": [low * self.assisted, high * self.assisted],
        }  # fmt: skip


def saved(answers: Sequence[Answer], minutes_by_hand: float | None = None) -> Saved:
    """``minutes_by_hand``: what one answer takes by hand, in place of what is measured."""
    hand = [answer for answer in answers if answer.kind in (Kind.BY_HAND, Kind.MISSED) and answer.lead_s is not None]
    assisted = [answer for answer in answers if answer.assisted and answer.lead_s is not None]
    source = "given" if minutes_by_hand is not None else "measured" if len(hand) >= FEWEST else "unknown"
    why = _why_not(answers, source, len(hand), len(assisted))
    if why:
        return Saved(source, len(hand), len(assisted), why=why)
    rng = np.random.default_rng(0)
    by_hand_s = _median(hand) if minutes_by_hand is None else minutes_by_hand * 60
    drawn = _medians(hand, rng) if minutes_by_hand is None else np.full(_DRAWS, by_hand_s)
    low, high = np.quantile(drawn - _medians(assisted, rng), [0.025, 0.975])
    with_s = _median(assisted)
    interval_s = (float(low), float(high))
    return Saved(source, len(hand), len(assisted), by_hand_s, with_s, by_hand_s - with_s, interval_s)


def lead_times(answers: Sequence[Answer]) -> list[tuple[str, Spread]]:
    """Seconds per answer by what became of it; kinds that do not occur are left out."""
    found = []
    for kind in Kind:
        own = [answer for answer in answers if answer.kind is kind]
        known = [(answer.task, answer.lead_s) for answer in own if answer.lead_s is not None]
        if known:
            found.append((str(kind), Spread.of([lead for _, lead in known], [task for task, _ in known])))
    return found


def _why_not(answers: Sequence[Answer], source: str, hand: int, assisted: int) -> str:
    if all(answer.lead_s is None for answer in answers):
        return "no annotation has a lead_time (annotations made through the API have none)"
    if assisted < FEWEST:
        return f"answers with a predicted mask and a lead_time: {assisted}, at least {FEWEST} are needed"
    if source == "unknown":
        return (
            f"answers drawn by hand and with a lead_time: {hand}, at least {FEWEST} are needed, or the minutes that "
            "one takes, given by --minutes-by-hand"
        )
    return ""


def _median(answers: Sequence[Answer]) -> float:
    return float(np.median([answer.lead_s for answer in answers if answer.lead_s is not None]))


def _medians(answers: Sequence[Answer], rng: np.random.Generator) -> _Floats:
    """The medians of samples of whole tasks, drawn with replacement."""
    leads = np.array([answer.lead_s for answer in answers], dtype=np.float64)
    _, task = np.unique([answer.task for answer in answers], return_inverse=True)
    tasks = int(task.max()) + 1
    drawn = (np.bincount(rng.integers(tasks, size=tasks), minlength=tasks)[task] for _ in range(_DRAWS))
    return np.array([np.median(np.repeat(leads, times)) for times in drawn])

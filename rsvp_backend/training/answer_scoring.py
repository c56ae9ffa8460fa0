"""How right a reasoner's answers are: regions and object of each against those of the right answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from rsvp_backend.errors import DeadlineError, ReasonerError
from rsvp_backend.grid import regions_box
from rsvp_backend.reasoner.local import LocalReasoner, Question
from rsvp_backend.training.examples import Example
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.training.scoring import Scores
from rsvp_backend.types import Answer, Marks, Proposal


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """``scores.ious`` are the gate's measure: the mean of region IoU and match of the object's words, per example.

    ``regions``: mean region IoU, ``objects``: share of examples whose objects are named exactly, ``valid``: share of
    answers that could be used; nan where there is nothing to score on.
    """

    scores: Scores
    regions: float
    objects: float
    valid: float

    @property
    def mean(self) -> float:
        return self.scores.mean


def score_answers(
    reasoner: LocalReasoner,
    examples: Sequence[Example],
    prompts: PromptStore,
    batch: int = 16,
    tell: Callable[[int], None] = lambda _: None,
) -> AnswerScores:
    """Ask ``reasoner`` about all ``examples``; ``tell`` hears how many were asked. An invalid answer scores 0."""
    rows: list[tuple[float, float, bool, bool]] = []
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        questions = [Question(prompts.get(one), one.query, prompts.marks) for one in some]
        answers = reasoner.propose_many(questions, batch=batch)
        rows += [_row(answer, one.proposals, prompts.marks) for answer, one in zip(answers, some, strict=True)]
        tell(len(rows))
    return AnswerScores(
        Scores(
            ious=tuple((regions + words) / 2 for regions, words, _, _ in rows),
            tasks=tuple(one.task for one in examples),
            empty=tuple(not one.present for one in examples),
        ),
        regions=_mean([regions for regions, *_ in rows]),
        objects=_mean([exact for _, _, exact, _ in rows]),
        valid=_mean([valid for *_, valid in rows]),
    )


def compare(given: Sequence[Proposal], right: Sequence[Proposal], marks: Marks) -> tuple[float, float, bool]:
    """Region IoU, match of the objects' words (both in [0, 1]), and whether the objects are named exactly.

    Shown objects are paired as fits best, one without a partner counts as 0; wrong presence is 0 altogether.
    """
    shown, wanted = ([one for one in side if one.present] for side in (given, right))
    if not wanted:
        return _nothing_there(given, right) if not shown else (0.0, 0.0, False)
    if not shown:
        return 0.0, 0.0, False
    pairs = np.array([[(_region_iou(a, b, marks), _words(a.object, b.object)) for b in wanted] for a in shown])
    rows, columns = linear_sum_assignment(pairs.sum(axis=2), maximize=True)
    regions, words = pairs[rows, columns].sum(axis=0) / max(len(shown), len(wanted))
    names = [sorted(_folded(one.object) for one in side) for side in (shown, wanted)]
    return float(regions), float(words), names[0] == names[1]


def _nothing_there(given: Sequence[Proposal], right: Sequence[Proposal]) -> tuple[float, float, bool]:
    """Both say that nothing is there: what matters then is that one of the missing objects is named."""
    pairs = [(a.object, b.object) for a in given for b in right]
    if not right:
        return 1.0, 1.0, True
    return 1.0, max((_words(a, b) for a, b in pairs), default=0.0), any(_folded(a) == _folded(b) for a, b in pairs)


def _row(
    answer: Answer | ReasonerError | DeadlineError, right: Sequence[Proposal], marks: Marks
) -> tuple[float, float, bool, bool]:
    if not isinstance(answer, Answer):
        return 0.0, 0.0, False, False
    return *compare(answer.proposals, right, marks), True


def _region_iou(one: Proposal, other: Proposal, marks: Marks) -> float:
    """IoU of the two boxes around the regions, in units of regions."""
    a, b = (regions_box(side.regions, marks, marks.columns, marks.rows) for side in (one, other))
    if a is None or b is None:
        return 0.0
    wide = min(a.right, b.right) - max(a.left, b.left)
    high = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0, wide) * max(0, high)
    return shared / (a.area_px + b.area_px - shared)


def _words(one: str, other: str) -> float:
    """F1 of the words; 1 for the same words in any order."""
    a, b = Counter(_folded(one).split()), Counter(_folded(other).split())
    return 2 * (a & b).total() / (a.total() + b.total()) if a or b else 1.0


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")

"""Answers -> counts, shares and distributions: of all, per version, label, annotator and time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rsvp_backend.evaluation.metrics import grouped_interval
from rsvp_backend.reports.answers import Answer, Fate, Judged, Kind
from rsvp_backend.training.reliability import Bin, expected_error, reliability

_Key = TypeVar("_Key", bound=Hashable)
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BINS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution: ``interval`` is the 95 % bootstrap interval of the mean, whole tasks drawn; ``quantiles`` are
    those of 10, 25, 50, 75 and 90 %. All nan for no values."""

    count: int
    mean: float
    interval: tuple[float, float]
    quantiles: tuple[float, float, float, float, float]

    @classmethod
    def of(cls, values: Sequence[float], tasks: Sequence[int]) -> Spread:
        """``tasks``: which task each value is of."""
        if not values:
            nan = float("nan")
            return cls(0, nan, (nan, nan), (nan,) * 5)
        interval = grouped_interval(values, [1.0] * len(values), [str(task) for task in tasks])
        q10, q25, q50, q75, q90 = (float(value) for value in np.quantile(values, _QUANTILES))
        return cls(len(values), float(np.mean(values)), interval, (q10, q25, q50, q75, q90))

    @property
    def median(self) -> float:
        return self.quantiles[2]

    def to_dict(self) -> dict[str, Any]:
        names = (f"q{round(share * 100)}" for share in _QUANTILES)
        return {"count": self.count, "mean": self.mean, "interval": list(self.interval)} | dict(
            zip(names, self.quantiles, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """Regions by what became of them. ``iou``: of predicted ones, deleted ones with 0; ``changed_share``: of edited
    ones, changed pixels over the image's; ``changed_px``, ``added_px``, ``removed_px``: their totals."""

    fates: dict[Fate, int]
    iou: Spread
    changed_share: Spread
    changed_px: int
    added_px: int
    removed_px: int

    @classmethod
    def of(cls, regions: Sequence[tuple[int, Judged]]) -> Tally:
        """``regions``: (task, region)."""
        fates = {fate: sum(region.fate is fate for _, region in regions) for fate in Fate}
        edited = [(task, region) for task, region in regions if region.fate is Fate.EDITED]
        pixels = ((region.changed_px or 0, region.added_px or 0, region.removed_px or 0) for _, region in edited)
        changed_px, added_px, removed_px = (sum(column) for column in zip((0, 0, 0), *pixels, strict=True))
        return cls(
            fates, _spread(regions, lambda region: region.iou), _spread(edited, lambda region: region.changed_share),
            changed_px, added_px, removed_px,
        )  # fmt: skip

    @property
    def predicted(self) -> int:
        return sum(count for fate, count in self.fates.items() if fate is not Fate.DRAWN)

    @property
    def final(self) -> int:
        return sum(count for fate, count in self.fates.items() if fate is not Fate.DELETED)

    def share(self, fate: Fate) -> float:
        """Of the predicted regions; of `Fate.DRAWN`, which were missed, of the final ones. nan for none."""
        whole = self.final if fate is Fate.DRAWN else self.predicted
        return self.fates[fate] / whole if whole else float("nan")

    def to_dict(self) -> dict[str, Any]:
        shares = {f"{fate}_share": self.share(fate) for fate in Fate}
        edits = {"changed_px": self.changed_px, "added_px": self.added_px, "removed_px": self.removed_px}
        spreads = {"iou": self.iou.to_dict(), "changed_share": self.changed_share.to_dict()}
        return {"predicted": self.predicted, **{str(f): n for f, n in self.fates.items()}, **shares, **edits, **spreads}


@dataclass(frozen=True, slots=True)
class Group:
    """Answers that have something in common. ``iou``: of whole answers that a mask was compared in; ``lead_s``: seconds
    per answer."""

    name: str
    answers: int
    tasks: int
    kinds: dict[Kind, int]
    iou: Spread
    lead_s: Spread
    regions: Tally

    @classmethod
    def of(cls, name: str, answers: Sequence[Answer]) -> Group:
        kinds = [answer.kind for answer in answers]
        ious = [(answer.task, answer.iou) for answer in answers]
        leads = [(answer.task, answer.lead_s) for answer in answers]
        return cls(
            name,
            len(answers),
            len({answer.task for answer in answers}),
            {kind: kinds.count(kind) for kind in Kind},
            _known(ious),
            _known(leads),
            Tally.of([(answer.task, region) for answer in answers for region in answer.regions]),
        )

    @property
    def empty(self) -> int:
        """Predictions without a mask."""
        return self.kinds[Kind.MISSED] + self.kinds[Kind.EMPTY_RIGHT]

    def to_dict(self) -> dict[str, Any]:
        empty = {"empty_predictions": self.empty, "empty_right": self.kinds[Kind.EMPTY_RIGHT]}
        kinds = {str(kind): count for kind, count in self.kinds.items()}
        spreads = {"iou": self.iou.to_dict(), "lead_s": self.lead_s.to_dict()}
        counts = {"answers": self.answers, "tasks": self.tasks, "kinds": kinds, **empty}
        return {"name": self.name, **counts, **spreads, "regions": self.regions.to_dict()}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores beside the IoU that was reached, deleted regions with 0; ``error``: the expected calibration error."""

    count: int
    table: tuple[Bin, ...]
    error: float

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> Calibration:
        regions = (region for answer in answers for region in answer.regions if region.predicted)
        pairs = [(r.score, r.iou) for r in regions if r.score is not None and r.iou is not None]
        table = reliability(np.array([score for score, _ in pairs]), np.array([iou for _, iou in pairs]), BINS)
        return cls(len(pairs), table, expected_error(table))

    def to_dict(self) -> dict[str, Any]:
        bins = [
            {"low": b.low, "high": b.high, "count": b.count, "score": b.predicted, "iou": b.reached} for b in self.table
        ]
        return {"count": self.count, "expected_error": self.error, "bins": bins}


def by_version(answers: Sequence[Answer]) -> list[Group]:
    """In the order in which people first answered to each; answers without a prediction are left out."""
    found = grouped((answer for answer in answers if answer.predicted), lambda answer: answer.version)
    return [Group.of(version or "(no version)", own) for version, own in found.items()]


def by_label(answers: Iterable[Answer]) -> list[tuple[str, Tally]]:
    """The most frequent first."""
    pairs = ((answer.task, region) for answer in answers for region in answer.regions)
    found = grouped(pairs, lambda pair: pair[1].label or "(no label)")
    return sorted(((label, Tally.of(own)) for label, own in found.items()), key=lambda one: -sum(one[1].fates.values()))


def by_annotator(answers: Sequence[Answer], names: dict[int, str]) -> list[Group]:
    """By number, or where ``names`` has it by name; the busiest first."""
    found = grouped(answers, lambda answer: answer.annotator)
    groups = [Group.of(_person(number, names), own) for number, own in found.items()]
    return sorted(groups, key=lambda group: -group.answers)


def grouped(values: Iterable[Any], key: Callable[[Any], _Key]) -> dict[_Key, list[Any]]:
    """Lists by key, in the order in which the keys first come."""
    found: dict[_Key, list[Any]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return found


def _person(number: int | None, names: dict[int, str]) -> str:
    return "(unknown)" if number is None else names.get(number, f"annotator {number}")


def _spread(regions: Sequence[tuple[int, Judged]], measured: Callable[[Judged], float | None]) -> Spread:
    return _known([(task, measured(region)) for task, region in regions])


def _known(pairs: Iterable[tuple[int, float | None]]) -> Spread:
    known = [(task, value) for task, value in pairs if value is not None]
    return Spread.of([value for _, value in known], [task for task, _ in known])

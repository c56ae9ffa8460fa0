"""Numbers only: what one person made of one task's prediction, region by region. No masks, so that many fit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from rsvp_backend.evaluation.metrics import Overlap


class Fate(StrEnum):
    """What became of a region: of one that was predicted the first three, of one that was not the last."""

    UNTOUCHED = "untouched"
    EDITED = "edited"
    DELETED = "deleted"
    DRAWN = "drawn"


class Kind(StrEnum):
    """What became of a whole answer.

    ``deleted``: every predicted region, whether something was drawn then or not. ``missed``: the prediction was empty,
    and something was there. ``by hand``: drawn without any prediction.
    """

    UNTOUCHED = "untouched"
    EDITED = "edited"
    DELETED = "deleted"
    MISSED = "missed"
    EMPTY_RIGHT = "empty, rightly"
    BY_HAND = "by hand"


@dataclass(frozen=True, slots=True)
class Judged:
    """One region. Pixels of the image: ``before_px`` predicted, ``after_px`` in the end, ``both_px`` in both; those
    that need a prediction which was not stored (a suggestion that was accepted and then edited) are None.

    ``label``: the predicted one, where there was one. ``score``: what the model gave, in [0, 1].
    """

    fate: Fate
    label: str | None
    image_px: int
    before_px: int | None
    after_px: int
    both_px: int | None
    score: float | None = None
    relabelled: bool = False

    @property
    def predicted(self) -> bool:
        return self.fate is not Fate.DRAWN

    @property
    def iou(self) -> float | None:
        """Of the predicted and the final mask; None where nothing was predicted, or it is not known what."""
        if not self.predicted or self.before_px is None or self.both_px is None:
            return None
        return Overlap(self.both_px, self.before_px + self.after_px - self.both_px).iou

    @property
    def added_px(self) -> int | None:
        return None if self.both_px is None else self.after_px - self.both_px

    @property
    def removed_px(self) -> int | None:
        return None if self.before_px is None or self.both_px is None else self.before_px - self.both_px

    @property
    def changed_px(self) -> int | None:
        added, removed = self.added_px, self.removed_px
        return None if added is None or removed is None else added + removed

    @property
    def changed_share(self) -> float | None:
        """Changed pixels as a share of the image's."""
        changed = self.changed_px
        return None if changed is None else changed / self.image_px


@dataclass(frozen=True, slots=True)
class Answer:
    """One annotation that counts. ``version``: of the prediction that it began with, empty without one.

    ``overlap``: of all predicted and all final masks, label by label; None without a prediction, or where it is not
    known. ``submitted``: UTC, None where Label Studio does not tell. ``lead_s``: Label Studio's ``lead_time``, seconds.
    """

    task: int
    annotation: int
    annotator: int | None
    predicted: bool
    version: str
    submitted: datetime | None
    lead_s: float | None
    regions: tuple[Judged, ...]
    overlap: Overlap | None

    def count(self, fate: Fate) -> int:
        return sum(region.fate is fate for region in self.regions)

    @property
    def iou(self) -> float | None:
        """None also where nothing was predicted and nothing was there: no mask was compared."""
        return self.overlap.iou if self.overlap is not None and self.overlap.union_px else None

    @property
    def assisted(self) -> bool:
        """Whether it began with a predicted mask."""
        return any(region.predicted for region in self.regions)

    @property
    def kind(self) -> Kind:
        kept = self.count(Fate.UNTOUCHED) + self.count(Fate.EDITED)
        if kept:
            return Kind.UNTOUCHED if self.count(Fate.UNTOUCHED) == len(self.regions) else Kind.EDITED
        if self.assisted:
            return Kind.DELETED
        if not self.regions:
            return Kind.EMPTY_RIGHT
        return Kind.MISSED if self.predicted else Kind.BY_HAND

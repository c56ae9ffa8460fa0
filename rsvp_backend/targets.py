"""Several targets: a reasoner's proposals -> what to segment, and masks that turn out to be one.

Rules, in this order; whatever they drop or join is said in notes for the trace.

1. Present and absent are what the proposals say. Absent with regions is absent. The same object called both present
   and absent is present.
2. Present without regions is dropped.
3. Proposals of the same object and label whose boxes overlap or share an edge are one target, as are those with
   identical boxes whose objects name the same thing ("mug", "red mug"). The first one's words stay. Different things
   in identical boxes remain two: their masks tell them apart.
4. Targets keep the order of the reasoner's proposals; a joined one stands where its first was.
5. Masks of different targets that coincide (IoU above `SAME_MASK_IOU`) are one instance: the better score's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsvp_backend.grid import regions_box
from rsvp_backend.types import BoolMask, Box, EmptyReason, Instance, Marks, Proposal, Regions

SAME_MASK_IOU = 0.9
_ARTICLES = {"the", "a", "an"}


@dataclass(frozen=True, slots=True)
class Target:
    """A proposal to segment and the box of its regions in image pixels, not padded."""

    proposal: Proposal
    box: Box


@dataclass(frozen=True, slots=True)
class Choice:
    """The targets; where there are none, ``reason`` and ``detail`` say why."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()
    reason: EmptyReason = EmptyReason.ABSENT
    detail: str = ""


def choose_targets(proposals: Sequence[Proposal], marks: Marks, width_px: int, height_px: int) -> Choice:
    """What to segment of ``proposals`` on an image of ``width_px`` x ``height_px``, by rules 1 to 4."""
    present = [proposal for proposal in proposals if proposal.present]
    notes = _contradictions(proposals, present)
    if not present:
        reasoning = " ".join(p.reasoning for p in proposals if p.reasoning)
        return Choice((), tuple(notes), EmptyReason.ABSENT, reasoning or "the reasoner proposed nothing")
    targets = []
    for proposal in present:
        box = regions_box(proposal.regions, marks, width_px, height_px)
        if box is not None:
            targets.append(Target(proposal, box))
        else:
            notes.append(f"{proposal.object!r} is called present, but no region is named: left out")
    detail = f"the reasoner names no region for: {', '.join(p.object for p in present)}"
    return Choice(_joined(targets, notes), tuple(notes), EmptyReason.NO_REGIONS, detail)


def distinct(instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
    """``instances`` without masks that coincide (rule 5), and notes; the better one takes the first one's place."""
    kept: list[Instance] = []
    notes = []
    for new in instances:
        at = next((i for i, old in enumerate(kept) if _coincide(old, new)), None)
        if at is None:
            kept.append(new)
            continue
        better, other = (kept[at], new) if kept[at].score >= new.score else (new, kept[at])
        kept[at] = better
        notes.append(
            f"{better.object!r} (score {better.score:.2f}: {better.reasoning}) has the same mask as {other.object!r} "
            f"(score {other.score:.2f}: {other.reasoning}): only the first is kept"
        )
    return tuple(kept), tuple(notes)


def words_of(name: str) -> tuple[str, ...]:
    """The words of an object's name, folded, without articles: what tells two objects apart."""
    words = re.findall(r"\w+", name.casefold())
    return tuple(word for word in words if word not in _ARTICLES)


def same_thing(a: str, b: str) -> bool:
    """Whether one name holds all words of the other, in any order: ``mug`` and ``the red mug``."""
    first, second = set(words_of(a)), set(words_of(b))
    return a.casefold() == b.casefold() or bool(first and second and (first <= second or second <= first))


def union_box(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    return Box(min(a.left, b.left), min(a.top, b.top), max(a.right, b.right), max(a.bottom, b.bottom))


def touch(a: Box, b: Box) -> bool:
    """Whether the boxes overlap or share a piece of an edge; a common corner is not enough."""
    across = max(a.left, b.left) - min(a.right, b.right)
    down = max(a.top, b.top) - min(a.bottom, b.bottom)
    return (across <= 0 and down < 0) or (across < 0 and down <= 0)


def mask_iou(a: BoolMask, b: BoolMask) -> float:
    """IoU of two masks, bool ``(height, width)``; 0 where both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0


def _contradictions(proposals: Sequence[Proposal], present: Sequence[Proposal]) -> list[str]:
    named = {words_of(proposal.object) for proposal in present}
    notes = []
    for proposal in proposals:
        if proposal.present:
            continue
        if not proposal.regions.empty:
            notes.append(f"{proposal.object!r} is called absent, but regions are named: taken as absent")
        if words_of(proposal.object) in named:
            notes.append(f"{proposal.object!r} is called both present and absent: taken as present")
    return notes


def _joined(targets: Sequence[Target], notes: list[str]) -> tuple[Target, ...]:
    """A join can make boxes touch that did not: it goes on until none does."""
    kept: list[Target] = []
    for target in targets:
        new, place = target, len(kept)
        while (at := next((i for i, old in enumerate(kept) if _are_one(old, new)), None)) is not None:
            old = kept.pop(at)
            first, second = (old, new) if at < place else (new, old)
            new, place = _join(first, second), min(at, place)
            notes.append(_join_note(first, second))
        kept.insert(place, new)
    return tuple(kept)


def _are_one(a: Target, b: Target) -> bool:
    one, other = a.proposal, b.proposal
    if words_of(one.object) == words_of(other.object) and one.label == other.label:
        return touch(a.box, b.box)
    labels = {label for label in (one.label, other.label) if label is not None}
    return a.box == b.box and len(labels) < 2 and same_thing(one.object, other.object)


def _join(first: Target, second: Target) -> Target:
    a, b = first.proposal.regions, second.proposal.regions
    regions = Regions(_both(a.rows, b.rows), _both(a.columns, b.columns), _both(a.cells, b.cells))
    label = first.proposal.label if first.proposal.label is not None else second.proposal.label
    return Target(replace(first.proposal, regions=regions, label=label), union_box(first.box, second.box))


def _join_note(first: Target, second: Target) -> str:
    also = second.proposal.reasoning if second.proposal.reasoning != first.proposal.reasoning else ""
    note = f"{first.proposal.object!r} is proposed twice, in regions that overlap or touch: taken as one"
    return f"{note} (also said: {also})" if also else note


def _both(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*a, *b}))


def _coincide(a: Instance, b: Instance) -> bool:
    return touch(a.box, b.box) and mask_iou(a.mask, b.mask) > SAME_MASK_IOU

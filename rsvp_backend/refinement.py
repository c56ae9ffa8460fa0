"""A person's clicks and box -> a mask, by the segmenter alone: no reasoner is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from rsvp_backend.errors import SegmenterError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.timing import timed
from rsvp_backend.types import Box, Click, EmptyReason, Instance, Outcome, Prompt, Proposal, Regions, Trace

NO_TARGET = (
    "only negative clicks, and no mask of an instruction under them: click on the object (without Alt) or draw a "
    "rectangle around it"
)


@dataclass(frozen=True, slots=True)
class Hints:
    """What a person pointed at, in image pixels. ``label``: the mask label chosen for it; ``notes``: warnings."""

    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    label: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def positive(self) -> tuple[Click, ...]:
        return tuple(click for click in self.clicks if click.positive)

    def __str__(self) -> str:
        """Such as ``a box and 2 clicks``."""
        count = len(self.clicks)
        clicks = [f"{count} click{'s' if count > 1 else ''}"] if count else []
        return " and ".join((["a box"] if self.box else []) + clicks)


def refine(
    rsvp: RSVP, image: Image.Image, hints: Hints, remembered: Sequence[Instance] = (), instruction: str = ""
) -> Outcome:
    """One mask from ``hints`` on ``image`` (upright, any mode).

    ``remembered``: the instances that ``instruction`` gave on this image. Where the hints fall into the crop of one of
    them (see `pointed_at`), that crop is segmented again by its object's name and the hints, and keeps its reasoning.
    Else the hints stand alone: a box is the crop, padded as the pipeline pads; clicks alone look at the whole image.
    """
    image = image.convert("RGB")
    earlier = pointed_at(remembered, hints)
    trace = Trace(instruction if earlier else "", notes=hints.notes)
    if earlier is None and hints.box is None and not hints.positive:
        return Outcome.empty(EmptyReason.NO_INSTRUCTION, NO_TARGET, trace)
    crop = earlier.box if earlier else _crop(hints, image.size, rsvp.config.padding)
    proposal = _proposal(hints, earlier)
    prompt = Prompt(
        crop,
        text=earlier.object if earlier else None,
        clicks=tuple(click for click in hints.clicks if _holds(crop, click)),
        box=hints.box,
    )
    timings: dict[str, float] = {}
    trace = replace(trace, proposals=(proposal,), crops=(crop,), timings_s=timings)
    try:
        with timed(timings, "segment"):
            (found,) = rsvp.segmenter.segment([image], [prompt])
    except SegmenterError as error:
        return Outcome.empty(EmptyReason.SEGMENTER_FAILED, str(error), trace)
    with timed(timings, "paste"):
        instance = rsvp.instance(proposal, crop, found, image)
    if instance is None:
        detail = f"the segmenter found no pixel of {proposal.object!r} with {hints}: add a click on it, or a box"
        return Outcome.empty(EmptyReason.EMPTY_MASK, detail, trace)
    return Outcome((instance,), trace)


def pointed_at(remembered: Sequence[Instance], hints: Hints) -> Instance | None:
    """The instance that ``hints`` correct: its crop holds the box, every positive click, and at least one hint.

    Of several, the one with the most clicks on its mask (a negative click is on what should go), then the smallest.
    """
    fitting = [instance for instance in remembered if _fits(instance.box, hints)]
    return min(fitting, key=lambda instance: (-_clicks_on(instance, hints), instance.box.area_px), default=None)


def _fits(crop: Box, hints: Hints) -> bool:
    if hints.box is not None and not _contains(crop, hints.box):
        return False
    touched = hints.box is not None or any(_holds(crop, click) for click in hints.clicks)
    return touched and all(_holds(crop, click) for click in hints.positive)


def _clicks_on(instance: Instance, hints: Hints) -> int:
    return sum(bool(instance.mask[int(c.y_px), int(c.x_px)]) for c in hints.clicks if _holds(instance.box, c))


def _crop(hints: Hints, size_px: tuple[int, int], padding: float) -> Box:
    """The box with all positive clicks, padded; without a box the whole image of ``size_px`` (width, height)."""
    if hints.box is None:
        return Box(0, 0, *size_px)
    xs = [int(click.x_px) for click in hints.positive]
    ys = [int(click.y_px) for click in hints.positive]
    left, top, right, bottom = hints.box.xyxy
    around = Box(
        min([left, *xs]), min([top, *ys]), max([right, *(x + 1 for x in xs)]), max([bottom, *(y + 1 for y in ys)])
    )
    return around.padded(padding, *size_px)


def _proposal(hints: Hints, earlier: Instance | None) -> Proposal:
    """What the mask says of itself: the earlier instance's words, else what was done."""
    if earlier is None:
        return Proposal(hints.label or "object", True, Regions(), f"Segmented from {hints}.", hints.label)
    return Proposal(earlier.object, True, earlier.regions, earlier.reasoning, hints.label or earlier.label)


def _holds(box: Box, click: Click) -> bool:
    return box.left <= click.x_px < box.right and box.top <= click.y_px < box.bottom


def _contains(outer: Box, inner: Box) -> bool:
    return (
        outer.left <= inner.left
        and outer.top <= inner.top
        and inner.right <= outer.right
        and inner.bottom <= outer.bottom
    )

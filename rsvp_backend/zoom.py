"""Zoom, coarse to fine (the paper's first open question): where the regions are small, mark them again and ask again.

A *window* around the target is cut from the image, enlarged, marked and asked about with the same instruction. What is
found there becomes the target's finer box. Whatever goes wrong, the coarser box stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError
from rsvp_backend.grid import regions_box
from rsvp_backend.targets import Target, same_thing, union_box
from rsvp_backend.types import Answer, Box, Deadline, Marks, Proposal, ZoomStep

MIN_WINDOW_PX = 32
"""A window with a shorter side shows pixels, not objects."""
MIN_GAIN = 0.8
"""A window wider than this share of what was seen before shows nothing new."""
ENLARGED_PX = 768
"""A window's longer side is enlarged to this, so that marks and object can be read."""

ZoomMode = Literal["off", "auto", "always"]
Ask = Callable[[Image.Image, Deadline | None], Answer]
"""Marks a picture and asks the request's question about it. Raises what `Reasoner.propose` raises."""


@dataclass(frozen=True, slots=True)
class Zoom:
    """When and how to look again.

    ``auto``: where a box covers less than the share ``below`` of the picture it was named in, or the answer needed a
    repair; ``always``: wherever a window is smaller than what was seen. ``padding``: share of the box that is added to
    it. At most ``rounds`` for each of the first ``targets`` targets.
    """

    mode: ZoomMode = "off"
    below: float = 0.05
    padding: float = 1.0
    rounds: int = 2
    targets: int = 4

    def __post_init__(self) -> None:
        if self.mode not in ("off", "auto", "always"):
            raise ValueError(f"zoom mode is {self.mode!r}: 'off', 'auto' or 'always' is expected")


@dataclass(slots=True)
class Closer:
    """The zooms of one request. ``call_s``: how long the first answer took; ``steps``: what was done."""

    ask: Ask
    image: Image.Image
    rules: Zoom
    marks: Marks
    deadline: Deadline | None
    call_s: float
    steps: list[ZoomStep] = field(default_factory=list)

    def look(self, targets: Sequence[Target], unsure: bool) -> tuple[Target, ...]:
        """``targets`` with finer boxes where a closer look found some. ``unsure``: the answer needed a repair."""
        first, rest = targets[: self.rules.targets], targets[self.rules.targets :]
        return (*(replace(target, box=self._finer(target, unsure)) for target in first), *rest)

    def _finer(self, target: Target, unsure: bool) -> Box:
        seen, box = Box(0, 0, *self.image.size), target.box
        for _ in range(self.rules.rounds):
            window = next_window(box, seen, self.image.size, self.rules, unsure)
            if window is None:
                break
            step = self._step(target.proposal, box, window)
            self.steps.append(step)
            if step.found is None:
                break
            seen, box, unsure = window, step.found, len(step.raw_texts) > 1
        return box

    def _step(self, proposal: Proposal, box: Box, window: Box) -> ZoomStep:
        """One closer look, which may take half of the time that is left: the rest is the segmenter's."""
        step = ZoomStep(proposal.object, window)
        limit = None if self.deadline is None else Deadline.after(self.deadline.remaining_s / 2)
        if limit is not None and limit.remaining_s < self.call_s:
            return replace(
                step, note=f"not asked: {limit.remaining_s:.1f} s for it, the first took {self.call_s:.1f} s"
            )
        began_s = time.perf_counter()
        try:
            answer = self.ask(enlarged(self.image.crop(window.xyxy)), limit)
            found, note = finer_box(answer.proposals, proposal, box, window, self.marks)
            step = replace(step, raw_texts=answer.raw_texts, found=found, note=note)
        except (ReasonerError, DeadlineError) as error:
            raw_texts = error.raw_texts if isinstance(error, AnswerError) else ()
            step = replace(step, raw_texts=raw_texts, note=f"no answer: {error}")
        return replace(step, seconds=time.perf_counter() - began_s)


def next_window(box: Box, seen: Box, size_px: tuple[int, int], rules: Zoom, unsure: bool = False) -> Box | None:
    """Where to look closer at ``box``, which was named in a picture of ``seen``; None where the rules ask for no look.

    ``size_px``: (width, height) of the image, in whose pixels all boxes are.
    """
    wanted = rules.mode == "always" or (rules.mode == "auto" and (unsure or coverage(box, seen) < rules.below))
    if not wanted:
        return None
    window = window_around(box, size_px, rules.padding)
    if min(window.width, window.height) < MIN_WINDOW_PX:
        return None
    return window if max(window.width / seen.width, window.height / seen.height) <= MIN_GAIN else None


def window_around(box: Box, size_px: tuple[int, int], padding: float) -> Box:
    """``box`` with ``padding``, grown to the image's aspect ratio and moved into it; at most the whole image.

    The aspect ratio keeps objects in the shape in which the reasoner saw them before.
    """
    width, height = size_px
    share = min(1.0, max(box.width / width, box.height / height) * (1 + padding))
    wide, high = max(box.width, round(width * share)), max(box.height, round(height * share))
    left = _inside((box.left + box.right - wide) // 2, width - wide)
    top = _inside((box.top + box.bottom - high) // 2, height - high)
    return Box(left, top, left + wide, top + high)


def finer_box(
    proposals: Sequence[Proposal], proposal: Proposal, coarse: Box, window: Box, marks: Marks
) -> tuple[Box | None, str]:
    """The box, in image pixels, of what ``proposals`` name in ``window`` for ``proposal``; else None and why not.

    Of several, those with their centre in ``coarse``; one alone may lie beside it, for the coarse answer may be a
    region off.
    """
    present = [other for other in proposals if other.present]
    if not present:
        return None, "called absent in the closer look"
    same = [other for other in present if same_thing(other.object, proposal.object)]
    if not same:
        return None, f"another object in the closer look: {', '.join(other.object for other in present)}"
    named = [regions_box(other.regions, marks, window.width, window.height) for other in same]
    boxes = [moved(box, window.left, window.top) for box in named if box is not None]
    inside = [box for box in boxes if _holds_centre(coarse, box)] or (boxes if len(boxes) == 1 else [])
    if not inside:
        return None, "several, none where it was, in the closer look" if boxes else "no region in the closer look"
    found = inside[0]
    for box in inside[1:]:
        found = union_box(found, box)
    return found, ""


def coverage(box: Box, seen: Box) -> float:
    """The share of ``seen`` that ``box`` would fill."""
    return box.area_px / seen.area_px


def moved(box: Box, right_px: int, down_px: int) -> Box:
    """``box`` moved: from a window's pixels to the image's, by the window's upper left corner."""
    return Box(box.left + right_px, box.top + down_px, box.right + right_px, box.bottom + down_px)


def enlarged(picture: Image.Image) -> Image.Image:
    """``picture`` with a longer side of at least `ENLARGED_PX`."""
    scale = ENLARGED_PX / max(picture.size)
    if scale <= 1:
        return picture
    size_px = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size_px, Image.Resampling.BICUBIC)


def _inside(start: int, last: int) -> int:
    return max(0, min(start, last))


def _holds_centre(outer: Box, inner: Box) -> bool:
    x, y = (inner.left + inner.right) / 2, (inner.top + inner.bottom) / 2
    return outer.left <= x < outer.right and outer.top <= y < outer.bottom

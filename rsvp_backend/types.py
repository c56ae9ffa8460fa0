"""The values that travel between the stages: all frozen, with shapes and frames in their docstrings.

Frames: *image* pixels are those of the upright image (EXIF applied); *crop* pixels start at the crop box's upper left
corner. Boxes are integers, half-open: ``left <= x < right``, ``top <= y < bottom``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels, half-open."""

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        if self.left >= self.right or self.top >= self.bottom:
            raise ValueError(f"box {self.xyxy} is empty: left < right and top < bottom are expected")

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def area_px(self) -> int:
        return self.width * self.height

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right, self.bottom

    def padded(self, fraction: float, width_px: int, height_px: int) -> Box:
        """Grow by ``fraction`` of the box's own width and height (half on each side), clipped to the image."""
        dx, dy = round(self.width * fraction / 2), round(self.height * fraction / 2)
        return Box(
            max(0, self.left - dx),
            max(0, self.top - dy),
            min(width_px, self.right + dx),
            min(height_px, self.bottom + dy),
        )


@dataclass(frozen=True, slots=True)
class Query:
    """One instruction on one image. ``labels`` are the project's mask labels, from which the reasoner may choose."""

    instruction: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Regions:
    """Ids of marked regions, 1-based. `bands` fill ``rows`` and ``columns``; `cells` fill ``cells`` (row-major)."""

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.cells and not (self.rows and self.columns)


@dataclass(frozen=True, slots=True)
class Proposal:
    """The reasoner's structured statement on one target (paper, section 3.1)."""

    object: str
    present: bool
    regions: Regions
    reasoning: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the reasoner gave: its proposals and every raw text on the way (first try, then the repair try)."""

    proposals: tuple[Proposal, ...]
    raw_texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Click:
    """A person's click, in image pixels (``0.5, 0.5`` is the centre of the upper left pixel)."""

    x_px: float
    y_px: float
    positive: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to segment: a text, clicks, a box, or a mix of them, all in image pixels.

    ``crop``: the part of the image that is looked at and that the answer covers; clicks and ``box`` lie in it.
    """

    crop: Box
    text: str | None = None
    clicks: tuple[Click, ...] = ()
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.text is None and not self.clicks and self.box is None:
            raise ValueError("the prompt is empty: a text, clicks or a box is expected")


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The segmenter's answer to one prompt.

    ``logits``: float32 ``(height, width)`` of the crop, foreground where > 0. ``predicted_iou``: the model's own
    estimate, nominally in [0, 1] but unclipped.
    """

    logits: npt.NDArray[np.float32]
    predicted_iou: float


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One mask, bool ``(height, width)`` of the image, with what led to it. ``box`` is the crop it was cut from."""

    mask: BoolMask
    object: str
    score: float
    reasoning: str
    box: Box
    regions: Regions
    label: str | None = None


class EmptyReason(StrEnum):
    """Why an outcome holds no instance."""

    ABSENT = "absent"  # the reasoner says that the object is not in the image
    NO_REGIONS = "no_regions"  # said to be present, but no region named
    INVALID_ANSWER = "invalid_answer"
    EMPTY_MASK = "empty_mask"
    REASONER_FAILED = "reasoner_failed"
    SEGMENTER_FAILED = "segmenter_failed"
    IMAGE = "image"
    NO_INSTRUCTION = "no_instruction"
    LABEL_CONFIG = "label_config"
    DEADLINE = "deadline"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class ZoomStep:
    """One closer look at a target: ``window`` is the part of the image that was marked and asked about again.

    ``found``: the finer box in image pixels; None where the coarser one was kept, and ``note`` says why.
    """

    object: str
    window: Box
    raw_texts: tuple[str, ...] = ()
    found: Box | None = None
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What happened on the way. ``timings_s`` by stage name; ``notes`` are warnings in the order they arose."""

    instruction: str
    visual_prompt: Image.Image | None = None
    raw_texts: tuple[str, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    crops: tuple[Box, ...] = ()
    zooms: tuple[ZoomStep, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """All that one instruction gave: instances, or none with the reason why (``reason`` is None if there are any)."""

    instances: tuple[Instance, ...]
    trace: Trace
    reason: EmptyReason | None = None
    detail: str = ""

    @classmethod
    def empty(cls, reason: EmptyReason, detail: str, trace: Trace) -> Outcome:
        return cls((), trace, reason, detail)

    def union(self, width_px: int, height_px: int) -> BoolMask:
        """All instances in one mask, bool ``(height_px, width_px)``; all False for the null mask."""
        merged = np.zeros((height_px, width_px), dtype=np.bool_)
        for instance in self.instances:
            merged |= instance.mask
        return merged


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock that a request must not outlive; carried through every outside call."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        return max(0.0, self.at_s - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at_s


MARKS_KINDS = ("bands", "cells")


@dataclass(frozen=True, slots=True)
class Marks:
    """How regions are marked: ``bands`` (numbered rows and columns) or ``cells`` (a numbered grid)."""

    kind: str = "bands"
    rows: int = 9
    columns: int = 9

    def __post_init__(self) -> None:
        if self.kind not in MARKS_KINDS:
            raise ValueError(f"marks kind {self.kind!r} is unknown: 'bands' or 'cells' is expected")
        if not (1 <= self.rows <= 50 and 1 <= self.columns <= 50):
            raise ValueError(f"marks of {self.rows} x {self.columns}: 1 to 50 rows and columns are expected")

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} {self.kind}"


class Reasoner(Protocol):
    """Stage 1: marked image + query -> answer. Implementations are safe to call from several threads."""

    @property
    def version(self) -> str:
        """Changes whenever weights, prompt or decoding change; part of ``model_version``."""
        ...

    @property
    def canvas_px(self) -> tuple[int, int] | None:
        """(width, height) the marked image must have (aspect ratio given up), or None for any size."""
        ...

    @property
    def max_side_px(self) -> int | None:
        """The longest side the marked image should have (see `grid.fit_marks`), or None for any; never enlarged."""
        ...

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """Ask once (and repair once). Raises `AnswerError`, `ReasonerError` or `DeadlineError`."""
        ...


class Segmenter(Protocol):
    """Stage 2: images + prompts -> masks. Owns device, dtype and lock; safe to call from several threads."""

    @property
    def version(self) -> str: ...

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        """One segmentation per (image, prompt) pair, logits at the size of the prompt's crop.

        The same image may stand under several prompts; what is computed of it once is used for all. Raises
        `SegmenterError`.
        """
        ...

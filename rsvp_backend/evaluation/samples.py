"""What is evaluated on, whatever it was read from: an image, an instruction, and what it means there.

Readers give an `EvaluationSet` of texts and outlines; images and masks are decoded when a sample's turn comes. What
cannot be read is told once, by file and field, and counted; where ``strict`` is asked for, it ends the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from rsvp_backend.evaluation.metrics import BoxXyxy
from rsvp_backend.training.referring import DataError, ImageSource, SampleError
from rsvp_backend.types import BoolMask

log = logging.getLogger(__name__)
_LOGGED = 20

Measure = Literal["masks", "boxes", "instances"]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What an instruction means in an image.

    ``mask``: bool ``(height, width)``; all False where it means nothing. ``ignore``: pixels that count for nothing.
    ``boxes``: where the data set has boxes. ``outlined``: False where ``mask`` is filled boxes for want of outlines.
    """

    mask: BoolMask
    ignore: BoolMask | None = None
    boxes: tuple[BoxXyxy, ...] = ()
    outlined: bool = True

    @property
    def present(self) -> bool:
        return bool(self.mask.any())

    @classmethod
    def of_boxes(cls, boxes: Sequence[BoxXyxy], width_px: int, height_px: int) -> Truth:
        """Filled boxes, each grown to whole pixels."""
        mask: BoolMask = np.zeros((height_px, width_px), dtype=np.bool_)
        for left, top, right, bottom in boxes:
            mask[max(0, int(top)) : int(np.ceil(bottom)), max(0, int(left)) : int(np.ceil(right))] = True
        return cls(mask, None, tuple(boxes), outlined=False)


class TruthSource(Protocol):
    def read(self, width_px: int, height_px: int) -> Truth:
        """The truth on an image of that size. Raises `SampleError`."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file. ``size_px``: (width, height) that the annotations are for; None: made on the upright image."""

    path: Path
    size_px: tuple[int, int] | None = None

    def load(self) -> Image.Image:
        """The RGB image. Raises `SampleError`."""
        try:
            with Image.open(self.path) as image:
                rgb = (ImageOps.exif_transpose(image) if self.size_px is None else image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SampleError(f"{self.path} cannot be read as an image: {said}") from None
        if self.size_px not in (None, rgb.size):
            raise SampleError(f"{self.path} is {rgb.size} px (width, height), its annotations are for {self.size_px}")
        return rgb


@dataclass(frozen=True, slots=True)
class Sample:
    """One instruction on one image.

    ``id``: the same at every reading; ``image_id``: shared by all samples of the image; ``object``: what is meant, by
    name, where the data set says it; ``groups``: what the summary tells apart, such as ``{"length": "short"}``.
    """

    id: str
    image_id: str
    image: ImageSource
    instruction: str
    truth: TruthSource
    object: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationSet:
    """Samples of one split. ``measure``: what they are scored by; ``whole``: how many samples the split has, 0 for as
    many as are here; ``sets``: the parts with outlines of single instances, by name, where the measure is
    ``instances`` (see `average_precision.InstanceTruth`)."""

    name: str
    split: str
    samples: tuple[Sample, ...]
    measure: Measure = "masks"
    whole: int = 0
    sets: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError(f"{self.name}, split {self.split!r}, holds no sample that can be read")


class Problems:
    """What could not be read or run, a line each. Raises the first as `DataError` where ``strict``."""

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.lines = strict, list[str]()

    def add(self, line: str) -> None:
        self.lines.append(line)
        if self.strict:
            raise DataError(f"{line} (--strict)")
        if len(self.lines) <= _LOGGED:
            log.warning("left out: %s", line)
        elif len(self.lines) == _LOGGED + 1:
            log.warning("more is left out: the report lists all of it")

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)


def limited(data: EvaluationSet, limit: int | None, seed: int) -> EvaluationSet:
    """``limit`` samples of ``data`` by chance, the same for the same ``seed``, in their order.

    Those of a larger limit hold those of a smaller. Where single instances are scored, ``limit`` counts images, with
    all that is asked of them: an AP is of whole images.
    """
    if limit is None:
        return data
    keys = [sample.image_id if data.measure == "instances" else sample.id for sample in data.samples]
    units = list(dict.fromkeys(keys))
    chosen = {units[n] for n in np.random.default_rng(seed).permutation(len(units))[:limit]}
    samples = tuple(sample for key, sample in zip(keys, data.samples, strict=True) if key in chosen)
    return replace(data, samples=samples, whole=len(data.samples))


def read_object(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> dict[str, Any]:
    """The JSON object in ``path``, in the first of ``encodings`` that reads. Raises `SampleError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror}") from None
    said = ""
    for encoding in encodings:
        try:
            data = json.loads(content.decode(encoding))
        except ValueError as error:
            said = said or str(error)
            continue
        if not isinstance(data, dict):
            raise SampleError(f"{path} holds a {type(data).__name__}: an object {{...}} is expected")
        return data
    raise SampleError(f"{path} is not JSON: {said}")

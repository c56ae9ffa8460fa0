"""One annotation against the prediction that it began with -> corrections: confirmed, corrected, drawn, refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rsvp_backend.errors import ImageError, RleError
from rsvp_backend.labelstudio.annotations import (
    JSON,
    Region,
    annotator,
    count_areas,
    imported,
    predictions_of,
    regions_of,
    started_from,
)
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.reading import LeftOutError, Reading, Reason
from rsvp_backend.labelstudio.shapes import ShapeError, read_mask
from rsvp_backend.labelstudio.tags import LabelConfig, match_label
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import BoolMask, Box

_ORIGINS = {"prediction": Origin.CONFIRMED, "prediction-changed": Origin.CORRECTED}


@dataclass(frozen=True, slots=True)
class Source:
    """What all tasks of a reading share. ``prompts``: names of the tags that are only drawn with to ask the model;
    ``check``: see `TaskImage`."""

    config: LabelConfig
    prompts: frozenset[str]
    fetcher: ImageFetcher
    padding: float
    max_pixels: int
    include_imported: bool
    check: Callable[[], object] = lambda: None


@dataclass(slots=True)
class TaskImage:
    """The image of one task: its size is looked up at most once, its pixels are not kept.

    ``check`` is called where it cannot be had: it raises `LabelStudioAwayError` where Label Studio is away, whose image
    is not gone then.
    """

    task: int
    uri: str
    fetcher: ImageFetcher
    check: Callable[[], object] = lambda: None
    looked_up: tuple[int, int] | ImageError | None = None

    def load(self, width_px: int, height_px: int) -> Image.Image:
        image = self._fetched()
        if image.size != (width_px, height_px):
            raise ImageError(
                f"task {self.task}: the image is {image.width} x {image.height}, its annotation was made on "
                f"{width_px} x {height_px}: was the file replaced?"
            )
        return image

    def size_px(self) -> tuple[int, int]:
        """(width, height). Raises `ImageError`, the same one each time."""
        if self.looked_up is None:
            try:
                self.looked_up = self._fetched().size
            except ImageError as error:
                self.looked_up = error
        if isinstance(self.looked_up, ImageError):
            raise self.looked_up
        return self.looked_up

    def _fetched(self) -> Image.Image:
        try:
            return self.fetcher.fetch(self.uri, task_id=self.task)
        except ImageError:
            self.check()
            raise


class Annotated:
    """One annotation with what it is compared to."""

    def __init__(self, task: JSON, annotation: JSON, source: Source, image: TaskImage) -> None:
        self.task, self.annotation, self.source, self.image = int(task["id"]), annotation, source, image
        self.predictions = predictions_of(task, source.config)
        self.kept = regions_of(annotation.get("result"), source.config)
        self.begun_with = started_from(annotation, self.kept, self.predictions)
        self.shown = self.begun_with.regions
        self.predicted = {key: region for one in self.predictions.values() for key, region in one.regions.items()}
        ours = {region.size_px for region in self.predicted.values() if region.record and region.size_px}
        self.stated_px: set[tuple[int, int] | None] = {*ours} or {region.size_px for region in self.kept.values()}
        # The backend's own masks have the size of the upright image, and the browser's as well.
        self.sure = len(self.stated_px) == 1 and None not in self.stated_px and bool(ours or not imported(annotation))

    def size_px(self, region: Region) -> tuple[int, int]:
        """(width, height) of the upright image, where the region agrees with it; fetched where that is in doubt."""
        agreed = next(iter(self.stated_px)) if self.sure else None
        if agreed is None or region.size_px not in (agreed, None):
            try:
                agreed = self.image.size_px()
            except ImageError as error:
                raise LeftOutError(Reason.NO_IMAGE, str(error)) from None
        width_px, height_px = agreed
        if width_px * height_px > self.source.max_pixels:
            raise LeftOutError(Reason.OTHER_SIZE, f"{width_px} x {height_px}: {self.source.max_pixels} pixels at most")
        if region.size_px == (height_px, width_px) and width_px != height_px:
            raise LeftOutError(Reason.SWAPPED_SIZE)
        if region.size_px not in (agreed, None):
            raise LeftOutError(Reason.OTHER_SIZE, f"{region.size_px} instead of {agreed}")
        return agreed

    def mask(self, region: Region) -> BoolMask:
        width_px, height_px = self.size_px(region)
        try:
            return read_mask(region.kind, region.value, height_px, width_px)
        except (ShapeError, RleError) as error:
            raise LeftOutError(Reason.DAMAGED, str(error)) from None

    def with_record(self, region: Region) -> Region:
        """The region with the record of the prediction it came from; without an object where a person changed the
        label, for the object then is another one."""
        before = self.predicted.get(region.id)
        if before is not None and not region.record:
            region = replace(region, record=before.record, meta_text=region.meta_text or before.meta_text)
        if not self._relabelled(region, before):
            return region
        kept = {key: value for key, value in region.record.items() if key != "object"}
        origin = "prediction-changed" if region.origin == "prediction" else region.origin
        return replace(region, record=kept, origin=origin)

    def _relabelled(self, region: Region, before: Region | None) -> bool:
        """A label that the backend was not sure of says nothing about the object."""
        if region.record.get("label_matched") is False:
            return False
        if before is not None:
            return before.label != region.label
        named, labels = region.record.get("label"), self.source.config.labels
        label = match_label(named if isinstance(named, str) else None, labels) or match_label(region.object, labels)
        return bool(region.object) and label is not None and label.output != region.label

    def label(self, region: Region) -> str | None:
        """The label's value; results carry its alias."""
        values = (label.value for label in self.source.config.labels if label.output == region.label)
        return next(values, region.label)


def corrections_of(annotated: Annotated, reading: Reading) -> Iterator[Correction]:
    """What a person did, region by region.

    A region of ``origin`` ``prediction`` is confirmed, ``prediction-changed`` corrected, anything else drawn. A region
    of the prediction that the annotator was shown (see `started_from`) and that is gone, or whose mask was erased, is
    refused: nothing of that name is in its crop. An annotation that was submitted empty refuses all of them. It is not
    refused where the annotation holds the same name in that crop; what was drawn there instead takes the deleted
    region's object as its text, if it has the same label.
    """
    for reason, count in (
        (Reason.DAMAGED, count_areas(annotated.annotation.get("result")) - len(annotated.kept)),
        (Reason.EMPTY, int(not annotated.kept and not annotated.shown)),
    ):
        reading.leave_out(reason, annotated.task, count)
    gone = {key: region for key, region in annotated.shown.items() if key not in annotated.kept}
    found: list[Correction] = []
    unread: set[str | None] = set()
    for region in map(annotated.with_record, annotated.kept.values()):
        try:
            if (mask := checked_mask(annotated, region)) is None:
                gone[region.id] = annotated.predicted.get(region.id, region)
            else:
                found.append(_correction(annotated, _named(annotated, region, mask, gone), mask))
        except LeftOutError as left_out:
            unread.add(region.label)
            reading.leave_out(left_out.reason, annotated.task, detail=left_out.detail)
    yield from found
    for region in gone.values():
        try:
            if region.label in unread:  # what could not be read may be the same object, drawn again
                raise LeftOutError(Reason.REDRAWN)
            yield _refusal(annotated, region, found)
        except LeftOutError as left_out:
            reading.leave_out(left_out.reason, annotated.task, detail=left_out.detail)


def checked_mask(annotated: Annotated, region: Region) -> BoolMask | None:
    """None where a prediction's mask was erased."""
    if region.control in annotated.source.prompts:
        raise LeftOutError(Reason.PROMPT)
    if region.image != annotated.source.config.image_name:
        raise LeftOutError(Reason.OTHER_IMAGE)
    if region.turned:
        raise LeftOutError(Reason.TURNED)
    mask = annotated.mask(region)
    if mask.any():
        return mask
    if region.origin in _ORIGINS:
        return None
    raise LeftOutError(Reason.EMPTY_MASK)


def _named(annotated: Annotated, region: Region, mask: BoolMask, gone: Mapping[str, Region]) -> Region:
    """A drawn region with the record of the one deleted prediction it stands for: same label, mostly in its crop."""
    if region.record or region.origin in _ORIGINS:
        return region
    height_px, width_px = mask.shape
    boxes = [(other, other.box(width_px, height_px)) for other in gone.values() if other.label == region.label]
    stood_for = [other for other, box in boxes if box and _within(mask, box).sum() * 2 > mask.sum()]
    return replace(region, record=stood_for[0].record) if len(stood_for) == 1 else region


def _correction(annotated: Annotated, region: Region, mask: BoolMask) -> Correction:
    height_px, width_px = mask.shape
    crop, tight = region.box(width_px, height_px), _bounds(mask)
    if crop is None or not _contains(crop, tight):
        padded = tight.padded(annotated.source.padding, width_px, height_px)
        crop = padded if crop is None else _union(crop, padded)
    return _made(annotated, region, mask, crop, _ORIGINS.get(region.origin, Origin.DRAWN))


def _refusal(annotated: Annotated, region: Region, found: Sequence[Correction]) -> Correction:
    width_px, height_px = annotated.size_px(region)
    crop = region.box(width_px, height_px)
    if crop is None:
        mask = annotated.mask(region)
        if not mask.any():
            raise LeftOutError(Reason.EMPTY_MASK)
        crop = _bounds(mask).padded(annotated.source.padding, width_px, height_px)
    nothing = np.zeros((height_px, width_px), dtype=np.bool_)
    refused = _made(annotated, region, nothing, crop, Origin.REFUSED)
    for other in found:
        # A text that is only the label names any object of it.
        same = other.text == refused.text or other.text == other.label == refused.label
        if same and _within(other.mask, crop).any():
            raise LeftOutError(Reason.REDRAWN)
    return refused


def _made(annotated: Annotated, region: Region, mask: BoolMask, crop: Box, origin: Origin) -> Correction:
    label = annotated.label(region)
    text = region.object or label
    if not text:
        raise LeftOutError(Reason.NO_TEXT)
    height_px, width_px = mask.shape
    image = annotated.image
    return Correction(
        key=_key(annotated.task, region.id, mask, text),
        task=annotated.task,
        text=text,
        mask=mask,
        crop=crop,
        origin=origin,
        load_image=lambda: image.load(width_px, height_px),
        label=label,
        reasoning=region.reasoning,
        annotator=annotator(annotated.annotation),
    )


def _key(task: int, region: str, mask: BoolMask, text: str) -> str:
    """Over content only: neither the order of reading nor the codec of the mask counts."""
    digest = hashlib.sha256(repr((task, region, mask.shape, text)).encode())
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def _bounds(mask: BoolMask) -> Box:
    """The tight box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _within(mask: BoolMask, box: Box) -> BoolMask:
    return mask[box.top : box.bottom, box.left : box.right]


def _contains(outer: Box, inner: Box) -> bool:
    return _union(outer, inner) == outer


def _union(one: Box, other: Box) -> Box:
    return Box(
        min(one.left, other.left),
        min(one.top, other.top),
        max(one.right, other.right),
        max(one.bottom, other.bottom),
    )

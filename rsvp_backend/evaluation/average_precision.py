"""COCO's mask AP by pycocotools, over instances that a run has found.

An instance's score is the pipeline's own (`masks.score`: the decoder's predicted IoU times the mask's stability). The
paper does not say how its masks were scored, so a figure of ours stands beside its own with that reserve.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask

if TYPE_CHECKING:
    from rsvp_backend.evaluation.coco_file import Annotation, CocoFile

log = logging.getLogger(__name__)
Runs = dict[str, Any]
"""``{"size": [height, width], "counts": text}``: COCO's packed run lengths, as JSON holds them."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One instance: ``image`` and ``category`` count from 0 in the truth's order."""

    image: int
    category: int
    runs: Runs
    score: float


@dataclass(frozen=True, slots=True)
class Precision:
    """AP over IoU 0.50 to 0.95, and at 0.50 and 0.75, in [0, 1]; mean over categories that occur."""

    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, slots=True, eq=False)
class InstanceTruth:
    """The outlines of the set ``name``; samples of it are called ``name:IMAGE:CATEGORY``."""

    name: str
    file: CocoFile

    def precision(self, answered: dict[str, Sequence[tuple[Runs, float]]]) -> Precision | None:
        """AP from the (runs, score) of each sample that was answered, over images all of whose categories were.

        None where there is no such image, or nothing to find in them.
        """
        images, categories = list(self.file.pictures), list(self.file.categories)
        complete = [i for i in images if all(f"{self.name}:{i}:{c}" in answered for c in categories)]
        found = [
            Detection(n, k, runs, score)
            for n, image in enumerate(complete)
            for k, category in enumerate(categories)
            for runs, score in answered[f"{self.name}:{image}:{category}"]
        ]
        sizes, truths = [], []
        for n, image in enumerate(complete):
            width, height = self.file.pictures[image].size_px or (0, 0)
            sizes.append((width, height))
            for annotation in self.file.annotations[image]:
                category = annotation.category
                if category is not None and category in self.file.categories:
                    place = categories.index(category)
                    truths += _truth(annotation, n, place, width, height)
        return average_precision(sizes, len(categories), truths, found)


def average_precision(
    sizes_px: Sequence[tuple[int, int]], categories: int, truths: Sequence[dict[str, Any]], found: Sequence[Detection]
) -> Precision | None:
    """COCO's AP. ``sizes_px``: (width, height) by image; ``truths``: COCO annotations with run lengths, ids as in
    `Detection`. None where there is no truth."""
    if not any(not truth["iscrowd"] for truth in truths):
        return None
    if not found:
        return Precision(0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": n + 1, "width": w, "height": h} for n, (w, h) in enumerate(sizes_px)],
            "categories": [{"id": n + 1, "name": str(n)} for n in range(categories)],
            "annotations": [dict(row, id=n + 1) for n, row in enumerate(truths)],
        }
        truth.createIndex()
        rows = [
            {"image_id": d.image + 1, "category_id": d.category + 1, "segmentation": d.runs, "score": d.score}
            for d in found
        ]
        evaluation = COCOeval(truth, truth.loadRes(rows), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    log.debug("%s", said.getvalue())
    return Precision(*(max(0.0, float(value)) for value in evaluation.stats[:3]))


def packed(mask: BoolMask) -> Runs:
    """Bool ``(height, width)`` -> run lengths."""
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in runs["size"]], "counts": runs["counts"].decode("ascii")}


def components(masks: Iterable[tuple[BoolMask, float]]) -> list[tuple[BoolMask, float]]:
    """Each mask's connected parts as instances of their own, with the whole one's score."""
    parts = []
    for mask, score in masks:
        labels, count = ndimage.label(mask)
        parts += [(np.asarray(labels == n + 1, dtype=np.bool_), score) for n in range(count)]
    return parts


def _truth(annotation: Annotation, image: int, category: int, width_px: int, height_px: int) -> list[dict[str, Any]]:
    """The annotation as COCO's evaluation takes it; its outline is checked here, C code trusts it."""
    try:
        mask = annotation.mask(width_px, height_px)
    except SampleError as error:
        log.warning("left out of the AP: %s", error)
        return []
    return [
        {"image_id": image + 1, "category_id": category + 1, "iscrowd": int(annotation.crowd),
         "area": float(mask.sum()), "bbox": [0, 0, width_px, height_px], "segmentation": packed(mask)}
    ]  # fmt: skip

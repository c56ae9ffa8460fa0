"""One file of COCO annotations, checked: what evaluations on COCO folders and on SegInW read.

"images": [{id, file_name, width, height}], "categories": [{id, name}],
"annotations": [{id, image_id, category_id, segmentation, iscrowd}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsvp_backend.evaluation.refcoco import picture_of
from rsvp_backend.evaluation.samples import Picture, Problems, Truth
from rsvp_backend.training.coco_data import Ident, by_id, ident, read_json, rows
from rsvp_backend.training.coco_masks import decode, is_segmentation
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """One outlined thing. ``crowd``: an outline around many, which counts for nothing; ``where``: file and id."""

    key: Ident
    image: Ident
    category: Ident | None
    segmentation: Any
    crowd: bool
    texts: tuple[str, ...]
    where: str

    def mask(self, width_px: int, height_px: int) -> BoolMask:
        """Bool ``(height_px, width_px)``. Raises `SampleError`."""
        try:
            return decode(self.segmentation, height_px, width_px)
        except SampleError as error:
            raise SampleError(f"{self.where}: segmentation: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class UnionTruth:
    """All ``annotations`` in one mask; those of crowds are ignored where no other one is."""

    annotations: tuple[Annotation, ...]

    def read(self, width_px: int, height_px: int) -> Truth:
        mask: BoolMask = np.zeros((height_px, width_px), dtype=np.bool_)
        crowd = mask.copy()
        for annotation in self.annotations:
            (crowd if annotation.crowd else mask)[annotation.mask(width_px, height_px)] = True
        return Truth(mask, crowd & ~mask)


@dataclass(frozen=True, slots=True, eq=False)
class CocoFile:
    """Images and categories by id, in the file's order; ``annotations`` of each image that is usable."""

    path: Path
    pictures: Mapping[Ident, Picture]
    categories: Mapping[Ident, str]
    annotations: Mapping[Ident, Sequence[Annotation]]

    @classmethod
    def read(cls, path: Path, folders: Sequence[Path], problems: Problems) -> CocoFile:
        """``folders``: where images may be; the first that exists is taken. Raises `DataError`."""
        data = read_json(path)
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        pictures: dict[Ident, Picture] = {}
        for key, row in by_id(rows(data, "images", path)).items():
            try:
                pictures[key] = picture_of(row, folder, f"{path}: image {key!r}")
            except SampleError as error:
                problems.add(str(error))
        names = {key: row.get("name") for key, row in by_id(rows(data, "categories", path)).items()}
        categories = {key: name.strip() for key, name in names.items() if isinstance(name, str) and name.strip()}
        found: dict[Ident, list[Annotation]] = {key: [] for key in pictures}
        for number, row in enumerate(rows(data, "annotations", path)):
            try:
                annotation = _annotation(row, number, path)
                if annotation.image not in found:
                    raise SampleError(
                        f"{annotation.where}: image_id {annotation.image!r} is not among the usable images"
                    )
                found[annotation.image].append(annotation)
            except SampleError as error:
                problems.add(str(error))
        return cls(path, pictures, categories, found)


def _annotation(row: Mapping[str, Any], number: int, path: Path) -> Annotation:
    key, image, category = ident(row.get("id", number)), ident(row.get("image_id")), ident(row.get("category_id"))
    where = f"{path}: annotation {row.get('id', f'number {number}')}"
    if key is None or image is None:
        raise SampleError(f"{where}: image_id is {row.get('image_id')!r:.60}: an id is expected")
    if not is_segmentation(row.get("segmentation")):
        raise SampleError(
            f"{where}: segmentation is {row.get('segmentation')!r:.60}: polygons or run lengths are expected"
        )
    given = row.get("sentences")
    sentences = [s.get("sent") if isinstance(s, dict) else s for s in given] if isinstance(given, list) else []
    texts = [text.strip() for text in [*sentences, row.get("caption")] if isinstance(text, str) and text.strip()]
    return Annotation(
        key, image, category, row["segmentation"], bool(row.get("iscrowd")), tuple(dict.fromkeys(texts)), where
    )

"""refCOCO, refCOCO+ and refCOCOg as the REFER toolkit lays them out.

    ROOT/refcoco/refs(unc).p, ROOT/refcoco/instances.json; likewise refcoco+ (unc) and refcocog (umd, or google)
    ROOT/images/mscoco/images/train2014/COCO_train2014_*.jpg (or one of `IMAGE_FOLDERS`)

One sample is one sentence on one object.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsvp_backend.training.coco_data import Ident, Pictures, by_id, ident, read_json, rows
from rsvp_backend.training.coco_masks import CocoMask, is_segmentation
from rsvp_backend.training.refer_pickle import load_plain
from rsvp_backend.training.referring import DataError, Dataset, Sample

log = logging.getLogger(__name__)

SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")


@dataclass(frozen=True, slots=True)
class _Ref:
    """An object that sentences refer to."""

    annotation: Ident
    image: Ident
    split: str
    texts: tuple[str, ...]


def read_refer(root: Path, name: str, split_by: str | None = None) -> Dataset:
    """The data set ``name`` (a key of `SPLIT_BY`) below ``root``, divided as ``split_by`` divided it.

    Raises `DataError` where files are missing or damaged as a whole; single objects that cannot be used are counted.
    """
    by, instances_file = split_by or SPLIT_BY[name], root / name / "instances.json"
    left_out: Counter[str] = Counter()
    refs = _refs(refs_file(root / name, by), left_out)
    instances = read_json(instances_file)
    pictures = Pictures(rows(instances, "images", instances_file), images_folder(root), left_out)
    masks = _masks(refs, by_id(rows(instances, "annotations", instances_file)), pictures, left_out)
    on_image: dict[Ident, dict[Ident, CocoMask]] = {}
    for ref in refs:
        if ref.annotation in masks:
            on_image.setdefault(ref.image, {})[ref.annotation] = masks[ref.annotation]
    splits: dict[str, list[Sample]] = {}
    for ref in refs:
        image, mask = pictures.get(ref.image), masks.get(ref.annotation)
        if image is not None and mask is not None:
            others = tuple(other for key, other in on_image[ref.image].items() if key != ref.annotation)
            region, image_id = f"{name}:{ref.annotation}", f"coco:{image.path.name}"
            samples = [Sample(region, image_id, text, image, mask, others) for text in ref.texts]
            splits.setdefault(ref.split, []).extend(samples)
    found = Dataset.of(f"{name} ({by}) in {root}", splits, left_out)
    log.info("%s", found.summary())
    return found


def refs_file(folder: Path, by: str) -> Path:
    """The ``refs(...).p`` of a data set's own ``folder``. Raises `DataError`."""
    path = folder / f"refs({by}).p"
    if not path.is_file():
        there = sorted(file.name for file in folder.glob("refs(*).p")) if folder.is_dir() else []
        seen = f"there are {', '.join(there)}" if there else "there is no refs(...).p"
        raise DataError(
            f"{path} does not exist, {seen} in {folder}: name the folder that holds refcoco, refcoco+ or refcocog, and "
            "another division as refcocog/google:ROOT"
        )
    return path


def images_folder(root: Path) -> Path:
    """Where COCO's train2014 is below ``root``. Raises `DataError`."""
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{root} has no images: COCO's train2014, or a link to it, is expected in {', '.join(IMAGE_FOLDERS)}"
    )


def _refs(path: Path, left_out: Counter[str]) -> list[_Ref]:
    """The objects in a ``refs(...).p``; those without ids or texts are counted."""
    data = load_plain(path)
    if not isinstance(data, list):
        raise DataError(f"{path} holds a {type(data).__name__}: the list of a REFER data set is expected")
    found = []
    for row in data:
        row = row if isinstance(row, dict) else {}
        annotation, image, split = ident(row.get("ann_id")), ident(row.get("image_id")), row.get("split")
        if annotation is None or image is None or not isinstance(split, str):
            left_out["objects without ids or split"] += 1
            continue
        found.append(_Ref(annotation, image, split, _texts(row.get("sentences"), left_out)))
    return found


def _texts(sentences: object, left_out: Counter[str]) -> tuple[str, ...]:
    rows = sentences if isinstance(sentences, list | tuple) else []
    texts = [row.get("sent") if isinstance(row, dict) else None for row in rows]
    found = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    if len(found) < len(texts):
        left_out["empty sentences"] += len(texts) - len(found)
    return found


def _masks(
    refs: Sequence[_Ref], annotations: Mapping[Ident, Mapping[str, Any]], pictures: Pictures, left_out: Counter[str]
) -> dict[Ident, CocoMask]:
    """The outlines of all objects that have one; the others are counted."""
    masks: dict[Ident, CocoMask] = {}
    for ref in {ref.annotation: ref for ref in refs}.values():
        image, annotation = pictures.get(ref.image), annotations.get(ref.annotation)
        if image is None:
            left_out["objects on unusable images"] += 1
        elif annotation is None:
            left_out["objects without annotation"] += 1
        elif not is_segmentation(annotation.get("segmentation")):
            left_out["objects with damaged outlines"] += 1
        else:
            masks[ref.annotation] = CocoMask((annotation["segmentation"],), image.height_px, image.width_px)
    return masks

"""A folder of images with COCO annotations (see `training.coco_data`), as phrases with a mask each.

An annotation's ``sentences`` or ``caption`` mean its own mask. Without them the instruction is the category's name, and
the mask all that is of this category in the image; outlines of crowds are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rsvp_backend.evaluation.coco_file import Annotation, CocoFile, UnionTruth
from rsvp_backend.evaluation.samples import EvaluationSet, Problems, Sample
from rsvp_backend.training.coco_data import Ident, split_of
from rsvp_backend.training.referring import DataError


def read_coco(root: Path, split: str, problems: Problems) -> EvaluationSet:
    """All annotation files of a split, told by their names. Raises `DataError`."""
    files = sorted((root / "annotations").glob("*.json"))
    there = sorted({split_of(file.stem) for file in files})
    if split not in there:
        raise DataError(f"{root}/annotations has no split {split!r}: {', '.join(there) or 'none'} are there (--split)")
    files = [file for file in files if split_of(file.stem) == split]
    # COCO's captions and keypoints repeat the images; their outlines are those of the instances.
    files = [file for file in files if file.stem.startswith("instances")] or files
    samples: dict[str, Sample] = {}
    for file in files:
        ending = file.stem.rpartition("_")[2]
        folders = [root / ending, root / "images" / ending, root / "images", root]
        read = CocoFile.read(file, folders, problems)
        for key in read.pictures:
            samples |= {sample.id: sample for sample in _samples(read, key)}
    return EvaluationSet("coco", split, tuple(samples.values()))


def _samples(file: CocoFile, image: Ident) -> Iterator[Sample]:
    picture, by_category = file.pictures[image], dict[Ident, list[Annotation]]()
    name = picture.path.name
    for annotation in file.annotations[image]:
        for text in annotation.texts:
            yield Sample(f"{name}:{annotation.key}:{text}", name, picture, text, UnionTruth((annotation,)))
        category = annotation.category
        if not annotation.texts and category is not None and category in file.categories:
            by_category.setdefault(category, []).append(annotation)
    for key, own in by_category.items():
        if all(annotation.crowd for annotation in own):
            continue
        text = file.categories[key]
        yield Sample(f"{name}:{text}", name, picture, text, UnionTruth(tuple(own)), object=text)

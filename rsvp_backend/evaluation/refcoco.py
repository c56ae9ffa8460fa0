"""refCOCO, refCOCO+ and refCOCOg in REFER's layout (see `training.refer_data`), every sentence of a split.

Texts are asked in lower case and stripped, as published evaluations of referring segmentation ask them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsvp_backend.evaluation.samples import EvaluationSet, Picture, Problems, Sample, Truth
from rsvp_backend.training.coco_data import by_id, ident, read_json, rows
from rsvp_backend.training.coco_masks import decode, is_segmentation
from rsvp_backend.training.refer_data import SPLIT_BY, images_folder, refs_file
from rsvp_backend.training.refer_pickle import load_plain
from rsvp_backend.training.referring import DataError, SampleError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class OutlineTruth:
    """A COCO ``segmentation``; ``where`` names its file and annotation."""

    segmentation: Any
    where: str

    def read(self, width_px: int, height_px: int) -> Truth:
        try:
            return Truth(decode(self.segmentation, height_px, width_px))
        except SampleError as error:
            raise SampleError(f"{self.where}: segmentation: {error}") from None


def read_refcoco(root: Path, name: str, split: str, problems: Problems, split_by: str | None = None) -> EvaluationSet:
    """The split of ``name`` (a key of `SPLIT_BY`) below ``root``. Raises `DataError`."""
    by = split_by or SPLIT_BY[name]
    file, instances_file = refs_file(root / name, by), root / name / "instances.json"
    refs = load_plain(file)
    if not isinstance(refs, list):
        raise DataError(f"{file} holds a {type(refs).__name__}: the list of a REFER data set is expected")
    there = sorted({str(ref.get("split")) for ref in refs if isinstance(ref, dict)})
    if not any(in_split(known, split) for known in there):
        raise DataError(f"{file} has no split {split!r}: {', '.join(there) or 'none'} are there (--split)")
    instances, images = read_json(instances_file), images_folder(root)
    reading = _Reading(file, instances_file, images, by_id(rows(instances, "images", instances_file)),
                       by_id(rows(instances, "annotations", instances_file)))  # fmt: skip
    samples = []
    for number, ref in enumerate(refs):
        try:
            samples += list(reading.samples(ref, number, split))
        except SampleError as error:
            problems.add(str(error))
    return EvaluationSet(f"{name} ({by})", split, tuple(samples))


def in_split(known: str, split: str) -> bool:
    """REFER's rule: testA and testB by the letter, test for all that begin so, others by their name."""
    if split in ("testA", "testB"):
        return known.startswith("test") and split[-1] in known
    return known.startswith("test") if split == "test" else known == split


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    file: Path
    instances_file: Path
    images_folder: Path
    images: Mapping[int | str, Row]
    annotations: Mapping[int | str, Row]

    def samples(self, ref: object, number: int, split: str) -> Iterator[Sample]:
        """The sentences of one object, if it is of ``split``. Raises `SampleError`."""
        where = f"{self.file}: object {number}"
        if not isinstance(ref, dict) or not isinstance(ref.get("split"), str):
            raise SampleError(f"{where}: split: a text is expected")
        if not in_split(ref["split"], split):
            return
        key, sentences = ident(ref.get("ann_id")), ref.get("sentences")
        annotation = self.annotations.get(key) if key is not None else None
        if annotation is None or not is_segmentation(annotation.get("segmentation")):
            raise SampleError(f"{where}: ann_id {key!r} has no usable segmentation in {self.instances_file}")
        if not isinstance(sentences, list) or not sentences:
            raise SampleError(f"{where}: sentences is {sentences!r:.60}: a list of sentences is expected")
        picture = self._picture(ref, where)
        truth = OutlineTruth(annotation["segmentation"], f"{self.instances_file}: annotation {key}")
        for place, sentence in enumerate(sentences):
            text = sentence.get("sent") if isinstance(sentence, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise SampleError(f"{where}: sentences[{place}].sent is {text!r:.60}: a text is expected")
            # By place, since some copies of the data set repeat sent_id.
            name = f"{ref.get('ref_id', number)}:{key}:{place}"
            yield Sample(name, picture.path.name, picture, text.strip().lower(), truth)

    def _picture(self, ref: Row, where: str) -> Picture:
        key = ident(ref.get("image_id"))
        row = self.images.get(key, {}) if key is not None else {}
        return picture_of(row, self.images_folder, f"{where}: image_id {key!r} in {self.instances_file}")


def picture_of(row: Row, folder: Path, where: str) -> Picture:
    """The image of a COCO ``images`` row in ``folder``. Raises `SampleError`."""
    name, width, height = row.get("file_name"), row.get("width"), row.get("height")
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in Path(name).parts:
        raise SampleError(f"{where}: file_name is {name!r:.60}: the name of a file in {folder} is expected")
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise SampleError(f"{where}: width and height are {width!r:.20} and {height!r:.20}: pixels are expected")
    return Picture(folder / name, (width, height))

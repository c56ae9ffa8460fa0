"""Data sets whose truth is boxes of objects in a scene graph: GQA, and CLEVR-Ref+, which has outlines beside them.

GQA (arXiv 1902.09506): ``ROOT/questions/SPLIT_balanced_questions.json`` (or without ``balanced``; also in ROOT itself),
``ROOT/sceneGraphs/SPLIT_sceneGraphs.json``, ``ROOT/images/ID.jpg``. Asked are the questions whose answer is objects.

CLEVR-Ref+ (arXiv 1901.00850): ``ROOT/refexps/clevr_ref+_SPLIT_refexps.json``,
``ROOT/scenes/clevr_ref+_SPLIT_scenes.json``, ``ROOT/images/SPLIT/*.png``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsvp_backend.evaluation.metrics import BoxXyxy
from rsvp_backend.evaluation.samples import EvaluationSet, Picture, Problems, Sample, Truth, read_object
from rsvp_backend.training.referring import DataError, SampleError
from rsvp_backend.types import BoolMask

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BoxTruth:
    """Boxes only."""

    boxes: tuple[BoxXyxy, ...]

    def read(self, width_px: int, height_px: int) -> Truth:
        return Truth.of_boxes(self.boxes, width_px, height_px)


@dataclass(frozen=True, slots=True)
class RunsTruth:
    """CLEVR-Ref+'s run lengths of each object, row by row, empty pixels first, and their boxes."""

    runs: tuple[str, ...]
    boxes: tuple[BoxXyxy, ...]
    where: str

    def read(self, width_px: int, height_px: int) -> Truth:
        mask: BoolMask = np.zeros((height_px, width_px), dtype=np.bool_)
        for text in self.runs:
            mask |= self._object(text, width_px, height_px)
        return Truth(mask, None, self.boxes)

    def _object(self, text: str, width_px: int, height_px: int) -> BoolMask:
        try:
            counts = [int(number) for number in text.split(",")]
        except ValueError:
            raise SampleError(f"{self.where}: obj_mask is {text!r:.60}: numbers with commas are expected") from None
        if min(counts) < 0 or sum(counts) != width_px * height_px:
            raise SampleError(
                f"{self.where}: obj_mask counts {sum(counts)} pixels, the image has {width_px} x {height_px}"
            )
        flat: BoolMask = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return flat.reshape(height_px, width_px)


def read_clevr_ref(root: Path, split: str, problems: Problems) -> EvaluationSet:
    """Every referring expression of a split. Raises `DataError`."""
    file = _existing([root / "refexps" / f"clevr_ref+_{split}_refexps.json"], root, "*_refexps.json", split)
    scenes_file = root / "scenes" / f"clevr_ref+_{split}_scenes.json"
    scenes = {row.get("image_index"): row for row in _list(scenes_file, "scenes")}

    def one(number: int, row: Row) -> Sample | None:
        return _clevr_sample(row, number, scenes, (file, scenes_file), root / "images" / split)

    return EvaluationSet("clevr-ref", split, tuple(_each(enumerate(_list(file, "refexps")), one, problems)), "boxes")


def read_gqa(root: Path, split: str, problems: Problems) -> EvaluationSet:
    """The questions of a split that objects answer. Raises `DataError`."""
    names = (f"{split}_balanced_questions.json", f"{split}_all_questions.json")
    places = [folder / name for name in names for folder in (root / "questions", root)]
    file = _existing(places, root, "*_questions.json", split)
    graph_file = next(
        (path for folder in (root / "sceneGraphs", root) if (path := folder / f"{split}_sceneGraphs.json").is_file()),
        root / "sceneGraphs" / f"{split}_sceneGraphs.json",
    )
    graphs = read_object(graph_file)

    def one(key: str, row: Row) -> Sample | None:
        return _gqa_sample(row, key, graphs, (file, graph_file), root / "images")

    return EvaluationSet("gqa", split, tuple(_each(read_object(file).items(), one, problems)), "boxes")


def _clevr_sample(row: Row, number: int, scenes: Mapping[Any, Row], files: tuple[Path, Path], images: Path) -> Sample:
    where = f"{files[0]}: refexps[{number}]"
    text, name, program = row.get("refexp"), row.get("image_filename"), row.get("program")
    if not isinstance(text, str) or not text.strip():
        raise SampleError(f"{where}: refexp is {text!r:.60}: a text is expected")
    if not isinstance(name, str) or Path(name).name != name:
        raise SampleError(f"{where}: image_filename is {name!r:.60}: a file's name is expected")
    last = program[-1] if isinstance(program, list) and program else None
    output = last.get("_output") if isinstance(last, dict) else None
    if not isinstance(output, list) or not all(isinstance(index, int) for index in output):
        raise SampleError(f"{where}: program[-1]._output is {output!r:.60}: a list of objects' numbers is expected")
    scene, keys = scenes.get(row.get("image_index"), {}), [str(index + 1) for index in output]
    masks, boxes = scene.get("obj_mask", {}), scene.get("obj_bbox", {})
    if not all(isinstance(masks.get(key), str) and key in boxes for key in keys):
        raise SampleError(
            f"{where}: image_index {row.get('image_index')!r}: {files[1]} lacks objects {', '.join(keys)}"
        )
    place = f"{files[1]}: image {name}"
    truth = RunsTruth(
        tuple(masks[key] for key in keys), tuple(_box(boxes[key], f"{place}: obj_bbox") for key in keys), place
    )
    return Sample(
        f"{row.get('image_index')}:{number}", name, Picture(images / name), text.strip(), truth,
        groups={"objects": _amount(len(keys))},
    )  # fmt: skip


def _gqa_sample(
    row: object, key: str, graphs: Mapping[str, Any], files: tuple[Path, Path], images: Path
) -> Sample | None:
    """None for a question that no object answers."""
    where = f"{files[0]}: question {key}"
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise SampleError(f"{where}: question: a text is expected")
    annotations = row.get("annotations")
    answer = annotations.get("answer") if isinstance(annotations, dict) else None
    if not isinstance(answer, dict):
        raise SampleError(f"{where}: annotations.answer is {answer!r:.60}: a dict of objects is expected")
    if not answer:
        return None
    size, found = _scene_objects(graphs, row.get("imageId"), list(dict.fromkeys(answer.values())), where, files[1])
    image, types = row["imageId"], row.get("types")
    boxes = tuple(_box([one.get(side) for side in "xywh"], f"{files[1]}: image {image}: objects") for one in found)
    names = {str(one.get("name")) for one in found}
    kind = types.get("semantic") if isinstance(types, dict) else None
    return Sample(
        key, image, Picture(images / f"{image}.jpg", size), row["question"].strip(), BoxTruth(boxes),
        object=names.pop() if len(names) == 1 else None,
        groups={"objects": _amount(len(boxes)), "type": str(kind or "unknown")},
    )  # fmt: skip


def _scene_objects(
    graphs: Mapping[str, Any], image: object, keys: Sequence[object], where: str, file: Path
) -> tuple[tuple[int, int], list[Row]]:
    """(width, height) of the image and its objects called ``keys``. Raises `SampleError`."""
    graph = graphs.get(image) if isinstance(image, str) and Path(image).name == image else None
    objects = graph.get("objects") if isinstance(graph, dict) else None
    found = [objects.get(str(key)) for key in keys] if isinstance(objects, dict) else [None]
    if not isinstance(graph, dict) or not all(isinstance(one, dict) for one in found):
        raise SampleError(f"{where}: imageId {image!r}: {file} lacks it, or an object of annotations.answer")
    width, height = graph.get("width"), graph.get("height")
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise SampleError(f"{file}: image {image}: width and height are {width!r}, {height!r}: pixels are expected")
    return (width, height), [one for one in found if isinstance(one, dict)]


def _each(rows: Any, one: Callable[[Any, Any], Sample | None], problems: Problems) -> Iterator[Sample]:
    for key, row in rows:
        try:
            sample = one(key, row)
        except SampleError as error:
            problems.add(str(error))
            continue
        if sample is not None:
            yield sample


def _existing(places: Sequence[Path], root: Path, pattern: str, split: str) -> Path:
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        there = sorted({path.name for path in root.glob(f"**/{pattern}")})
        seen = f"there are {', '.join(there)}" if there else f"there is no {pattern}"
        raise DataError(f"{places[0]} does not exist, {seen} below {root} (--data, --split {split})")
    return found


def _list(path: Path, name: str) -> list[Row]:
    rows = read_object(path).get(name)
    if not isinstance(rows, list):
        raise DataError(f"{path}: {name} is a {type(rows).__name__}: a list is expected")
    return [row if isinstance(row, dict) else {} for row in rows]


def _box(value: object, where: str) -> BoxXyxy:
    """``[x, y, width, height]`` -> corners."""
    numbers = [n for n in value if isinstance(n, int | float)] if isinstance(value, list) else []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers[2:]) < 0:
        raise SampleError(f"{where}: a box is {value!r:.60}: x, y, width and height in pixels are expected")
    left, top, width, height = (float(n) for n in numbers)
    return left, top, left + width, top + height


def _amount(count: int) -> str:
    return {0: "none", 1: "one"}.get(count, "several")

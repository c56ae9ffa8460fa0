"""ReasonSeg (LISA, arXiv 2308.00692): ``ROOT/{train,val,test}/*.jpg`` with a ``.json`` of the same name each.

Masks are drawn as LISA's evaluation draws them: by OpenCV, largest polygon first, so that smaller ones stay on top.
Only the first text is asked. ``is_sentence`` tells long instructions from short ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rsvp_backend.evaluation.samples import EvaluationSet, Picture, Problems, Sample, Truth, read_object
from rsvp_backend.training.referring import DataError, SampleError

TARGET, IGNORE = 1, 255
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
_FARTHEST = 4  # image sizes that a polygon may reach beyond the image

Points = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A polygon: ``points``, int32 ``(1, N, 2)`` x, y in pixels, and what it stands for."""

    points: Points
    value: int


@dataclass(frozen=True, slots=True, eq=False)
class ReasonSegTruth:
    """The polygons of ``path``."""

    path: Path
    shapes: tuple[Shape, ...]

    def read(self, width_px: int, height_px: int) -> Truth:
        farthest = _FARTHEST * max(width_px, height_px)
        if any(np.abs(shape.points).max() > farthest for shape in self.shapes):
            raise SampleError(f"{self.path}: shapes: points reach far beyond the image of {width_px} x {height_px} px")
        drawn = rasterise(self.shapes, width_px, height_px)
        return Truth(drawn == TARGET, drawn == IGNORE)


def read_reasonseg(root: Path, split: str, problems: Problems) -> EvaluationSet:
    """One split below ``root`` (or ``root/ReasonSeg``). Raises `DataError` where it is not there or empty."""
    folder = split_folder(root if not (root / "ReasonSeg").is_dir() else root / "ReasonSeg", split)
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS}
    samples = []
    for path in sorted(folder.glob("*.json")):
        image = images.pop(path.stem, None)
        try:
            samples.append(_sample(path, image or path.with_suffix(".jpg")))
        except SampleError as error:
            problems.add(str(error))
    for image in images.values():
        problems.add(f"{image} has no {image.stem}.json beside it")
    return EvaluationSet("reasonseg", split, tuple(samples))


def split_folder(root: Path, split: str) -> Path:
    """``root/split``. Raises `DataError` where it does not exist, naming those that do."""
    if (root / split).is_dir() and split not in (".", ".."):
        return root / split
    there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    seen = f"there are {', '.join(there)}" if there else "there is no folder at all"
    raise DataError(f"{root} has no split {split!r}, {seen} (--data, --split)")


def rasterise(shapes: Sequence[Shape], width_px: int, height_px: int) -> npt.NDArray[np.uint8]:
    """uint8 ``(height_px, width_px)``: 0, `TARGET` or `IGNORE`; each polygon with its outline of one pixel."""
    areas = [int(_draw(np.zeros((height_px, width_px), np.uint8), s.points, 1).sum()) for s in shapes]
    drawn = np.zeros((height_px, width_px), np.uint8)
    for index in np.argsort(areas, kind="stable")[::-1]:
        _draw(drawn, shapes[index].points, shapes[index].value)
    return drawn


def _draw(canvas: npt.NDArray[np.uint8], points: Points, value: int) -> npt.NDArray[np.uint8]:
    cv2.polylines(canvas, points, True, value, 1)  # type: ignore[call-overload]  # one array is a list of polygons
    cv2.fillPoly(canvas, points, value)  # type: ignore[call-overload]
    return canvas


def _sample(path: Path, image: Path) -> Sample:
    data = read_object(path, ("utf-8", "cp1252"))
    texts = data.get("text")
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise SampleError(f"{path}: text is {texts!r:.60}: a list of instructions is expected")
    if not isinstance(data.get("is_sentence"), bool):
        raise SampleError(f"{path}: is_sentence is {data.get('is_sentence')!r:.60}: true or false is expected")
    shapes = data.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise SampleError(f"{path}: shapes is {shapes!r:.60}: a list of polygons is expected")
    read = [_shape(path, number, shape) for number, shape in enumerate(shapes)]
    truth = ReasonSegTruth(path, tuple(shape for shape in read if shape is not None))
    length = "long" if data["is_sentence"] else "short"
    return Sample(path.stem, path.stem, Picture(image), texts[0].strip(), truth, groups={"length": length})


def _shape(path: Path, number: int, shape: Mapping[str, Any]) -> Shape | None:
    """None for the deprecated label ``flag``."""
    label = shape.get("label")
    if not isinstance(label, str):
        raise SampleError(f"{path}: shapes[{number}].label is {label!r:.60}: a text is expected")
    if label.lower() == "flag":
        return None
    try:
        points = np.asarray(shape.get("points"), dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.abs(points).max() < 2**31:
        raise SampleError(f"{path}: shapes[{number}].points is {shape.get('points')!r:.60}: [[x, y], ...] is expected")
    return Shape(points.astype(np.int32)[None], IGNORE if "ignore" in label.lower() else TARGET)

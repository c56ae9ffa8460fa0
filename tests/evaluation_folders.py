"""Tiny copies of public data sets' layouts, 90 x 90 px, for which every score can be computed by hand.

`fake_models` finds columns 27 to 44 of rows 27 to 62 (`FOUND_XYXY`, 648 px) whatever is asked: the middle ninth, padded
by a fifth, and of that the left half; nothing where the instruction says ``absent``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from refer_folders import packed

from rsvp_backend.evaluation.samples import Picture, Sample, Truth
from rsvp_backend.types import BoolMask

SIDE = 90
FOUND_XYXY = (27, 27, 45, 63)
FOUND_PX = 18 * 36

Xyxy = tuple[int, int, int, int]


def box_mask(*boxes: Xyxy, side: int = SIDE) -> BoolMask:
    """Bool ``(side, side)``; right and bottom are not inside."""
    mask = np.zeros((side, side), dtype=np.bool_)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def picture(path: Path, side: int = SIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def corners(box: Xyxy) -> list[list[int]]:
    """The polygon that OpenCV, which fills up to and with its corners, draws as exactly ``box``."""
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def reasonseg_json(texts: list[str], sentence: bool, **boxes: list[Xyxy]) -> dict[str, Any]:
    """Shapes by label: ``target``, ``ignore``, ``flag``."""
    shapes = [{"label": label, "points": corners(box)} for label, many in boxes.items() for box in many]
    return {"text": texts, "is_sentence": sentence, "shapes": shapes}


def write_reasonseg(root: Path, split: str = "val") -> Path:
    """Four samples that the fakes answer with IoU 1, 1/2, 0 (said absent) and 1 (nothing there, nothing found)."""
    left, top, _, bottom = FOUND_XYXY
    samples = {
        "a": reasonseg_json(["the cup", "never asked"], False, target=[FOUND_XYXY]),
        "b": reasonseg_json(["the thing to drink from"], True, target=[(left, top, left + 9, bottom)]),
        "c": reasonseg_json(["the absent dog"], True, target=[(0, 0, 10, 10)], flag=[(0, 0, 90, 90)]),
        "d": reasonseg_json(["the absent cat"], False),
    }
    for name, data in samples.items():
        write_json(root / split / f"{name}.json", data)
        picture(root / split / f"{name}.jpg")
    return root


def write_seginw(root: Path) -> Path:
    """Two of the sets. ``Cows``: a category, found as it is in one image and half in another. ``Phones``: two."""
    left, top, _, bottom = FOUND_XYXY
    half = (left, top, left + 9, bottom)
    _coco(root / "Cows" / "valid", ["cow"], [[("cow", FOUND_XYXY)], [("cow", half)]])
    _coco(root / "Phones" / "valid", ["mobile_Phone", "absent-thing"], [[("mobile_Phone", FOUND_XYXY)]])
    return root


def _coco(folder: Path, categories: list[str], images: list[list[tuple[str, Xyxy]]]) -> None:
    rows, annotations = [], []
    for n, things in enumerate(images):
        picture(folder / f"{n}.png")
        rows.append({"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE})
        for name, box in things:
            annotations.append(
                {"id": len(annotations), "image_id": n, "category_id": categories.index(name) + 1, "iscrowd": 0,
                 "segmentation": packed(box_mask(box))}
            )  # fmt: skip
    kinds = [{"id": n + 1, "name": name} for n, name in enumerate(categories)]
    data = {"images": rows, "annotations": annotations, "categories": kinds}
    write_json(folder / "_annotations_min1cat.coco.json", data)


def row_runs(mask: BoolMask) -> str:
    """CLEVR-Ref+'s run lengths: row by row, empty pixels first."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size])
    return ",".join(str(n) for n in ([0, *counts] if flat[0] else counts))


def write_clevr_ref(root: Path) -> Path:
    """One image with two objects; expressions that mean the first, both, and none."""
    first, second = FOUND_XYXY, (60, 60, 70, 80)
    picture(root / "images" / "val" / "CLEVR_val_000000.png")
    scene = {
        "image_index": 0, "image_filename": "CLEVR_val_000000.png", "objects": [{}, {}],
        "obj_mask": {str(n + 1): row_runs(box_mask(box)) for n, box in enumerate((first, second))},
        "obj_bbox": {str(n + 1): [b[0], b[1], b[2] - b[0], b[3] - b[1]] for n, b in enumerate((first, second))},
    }  # fmt: skip
    write_json(root / "scenes" / "clevr_ref+_val_scenes.json", {"scenes": [scene]})
    meant = {"the first cube": [0], "all cubes": [0, 1], "the absent ball": []}
    refexps = [
        {"image_index": 0, "image_filename": "CLEVR_val_000000.png", "refexp": text,
         "program": [{"type": "scene", "_output": [0, 1]}, {"type": "unique", "_output": output}]}
        for text, output in meant.items()
    ]  # fmt: skip
    write_json(root / "refexps" / "clevr_ref+_val_refexps.json", {"refexps": refexps})
    return root


def write_gqa(root: Path) -> Path:
    """Three questions on one image, one of which no object answers."""
    picture(root / "images" / "7.jpg")
    objects = {
        "11": {"name": "cup", "x": 27, "y": 27, "w": 18, "h": 36},
        "12": {"name": "dog", "x": 0, "y": 0, "w": 20, "h": 20},
    }
    write_json(
        root / "sceneGraphs" / "val_sceneGraphs.json", {"7": {"width": SIDE, "height": SIDE, "objects": objects}}
    )
    asked = {
        "q1": ("What is on the table?", {"0": "11"}, "obj"),
        "q2": ("Which animal sits there?", {"0": "12"}, "rel"),
        "q3": ("Is there a cat?", {}, "obj"),
    }
    questions = {
        key: {"question": text, "imageId": "7", "answer": "x", "types": {"semantic": kind},
              "annotations": {"question": {}, "answer": answer, "fullAnswer": {}}}
        for key, (text, answer, kind) in asked.items()
    }  # fmt: skip
    write_json(root / "questions" / "val_balanced_questions.json", questions)
    return root


class MaskTruth:
    """Truth from masks in memory."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def read(self, width_px: int, height_px: int) -> Truth:
        assert self.truth.mask.shape == (height_px, width_px)
        return self.truth


def sample(path: Path, instruction: str, mask: BoolMask, name: str = "s", object: str | None = None) -> Sample:
    return Sample(name, path.name, Picture(path), instruction, MaskTruth(Truth(mask)), object)

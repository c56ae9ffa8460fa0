"""Tiny data sets in REFER's and COCO's layouts: pictures of two coloured boxes each, with exact outlines."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from rsvp_backend.types import BoolMask

WIDTH, HEIGHT = 64, 48
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def box_of(image: int, colour: str) -> tuple[int, int, int, int]:
    """left, top, right, bottom of a box; red ones are on the left."""
    left = (4 if colour == "red" else 36) + image % 7
    top = 5 + image * 3 % 20
    return left, top, left + 14, top + 16


def box_mask(image: int, colour: str) -> BoolMask:
    left, top, right, bottom = box_of(image, colour)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def draw(path: Path, image: int) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), 220, dtype=np.uint8)
    for colour, rgb in COLOURS.items():
        pixels[box_mask(image, colour)] = rgb
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def polygon(image: int, colour: str) -> list[list[float]]:
    left, top, right, bottom = (float(n) for n in box_of(image, colour))
    return [[left, top, right, top, right, bottom, left, bottom]]


def packed(mask: BoolMask) -> dict[str, Any]:
    """COCO's packed run lengths, as in its JSON files."""
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def image_row(image: int, name: str) -> dict[str, Any]:
    return {"id": image, "file_name": name, "width": WIDTH, "height": HEIGHT}


def write_refer(root: Path, splits: dict[str, list[int]], name: str = "refcoco", by: str = "unc") -> Path:
    """Images by number under each split; the red box of an image has annotation 2n, the blue one 2n + 1."""
    images, annotations, refs = [], [], []
    for split, numbers in splits.items():
        for n in numbers:
            file = f"COCO_train2014_{n:012}.jpg"
            draw(root / "images" / "mscoco" / "images" / "train2014" / file, n)
            images.append(image_row(n, file))
            for k, colour in enumerate(COLOURS):
                ann = 2 * n + k
                outline: Any = polygon(n, colour) if k == 0 else packed(box_mask(n, colour))
                annotations.append({"id": ann, "image_id": n, "category_id": 1, "segmentation": outline})
                texts = (f"{colour} box", f"box on the {'left' if k == 0 else 'right'}")
                sentences = [{"sent": text, "raw": text, "sent_id": ann, "tokens": text.split()} for text in texts]
                refs.append(
                    {"ref_id": ann, "ann_id": ann, "image_id": n, "category_id": 1, "split": split,
                     "file_name": f"COCO_train2014_{n:012}_{ann}.jpg", "sentences": sentences, "sent_ids": [ann]}
                )  # fmt: skip
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def write_coco(root: Path, splits: dict[str, list[int]]) -> Path:
    """``instances_SPLIT2017.json``: polygons for red boxes, run lengths for blue ones, a category for each colour."""
    for split, numbers in splits.items():
        images, annotations = [], []
        for n in numbers:
            draw(root / f"{split}2017" / f"{n:012}.jpg", n)
            images.append(image_row(n, f"{n:012}.jpg"))
            annotations += [
                {"id": 2 * n, "image_id": n, "category_id": 1, "segmentation": polygon(n, "red"), "iscrowd": 0},
                {"id": 2 * n + 1, "image_id": n, "category_id": 2, "segmentation": packed(box_mask(n, "blue"))},
            ]
        categories = [{"id": 1, "name": "red box"}, {"id": 2, "name": "blue box"}]
        write_annotations(root, split, {"images": images, "annotations": annotations, "categories": categories})
    return root


def write_annotations(root: Path, split: str, data: dict[str, Any]) -> Path:
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path

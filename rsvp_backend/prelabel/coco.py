"""Masks as COCO's packed run lengths, and one COCO file of instances."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from rsvp_backend.types import BoolMask


def packed_runs(mask: BoolMask) -> dict[str, Any]:
    """``{"size": [height, width], "counts": text}`` of a mask, bool ``(height, width)``, as pycocotools encodes it."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    if flat[0]:
        runs.insert(0, 0)
    return {
        "size": [int(side) for side in mask.shape],
        "counts": "".join(map(_packed, range(len(runs)), [runs] * len(runs))),
    }


def bounding_box(mask: BoolMask) -> list[int]:
    """``[left, top, width, height]`` in pixels; of an empty mask all 0."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def write(
    stream: IO[str], labels: Sequence[str], records: Iterable[Mapping[str, Any]], again: Iterable[Mapping[str, Any]]
) -> None:
    """One COCO file, record by record. ``again``: the same records a second time, as only one is held in memory.

    A record: ``image`` (its name), ``size_px``, ``instruction`` and ``instances``; several may be of one image.
    """
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    stream.write(f'{{"categories": {json.dumps(categories)}, "images": [')
    images: dict[str, int] = {}
    for record in records:
        if record["image"] in images:
            continue
        images[record["image"]] = number = len(images) + 1
        width_px, height_px = record["size_px"]
        row = {"id": number, "file_name": record["image"], "width": width_px, "height": height_px}
        stream.write(("," if number > 1 else "") + "\n" + json.dumps(row))
    stream.write('], "annotations": [')
    number = 0
    for record in again:
        for instance in record["instances"]:
            number += 1
            row = _annotation(number, images[record["image"]], labels, record, instance)
            stream.write(("," if number > 1 else "") + "\n" + json.dumps(row))
    stream.write("]}\n")


def _annotation(
    number: int, image: int, labels: Sequence[str], record: Mapping[str, Any], instance: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": labels.index(instance["label"]) + 1,
        "segmentation": instance["runs"],
        "area": instance["area_px"],
        "bbox": instance["bbox"],
        "iscrowd": 0,
        "score": instance["score"],
        "attributes": {
            "instruction": record["instruction"],
            "object": instance["object"],
            "reasoning": instance["reasoning"],
            "mask": instance["mask"],
        },
    }


def _packed(index: int, runs: Sequence[int]) -> str:
    """The run at ``index``; from the fourth on it is the difference to the last but one. See `coco_masks.unpacked`."""
    value, text = runs[index] - (runs[index - 2] if index > 2 else 0), ""
    while True:
        bits = value & 31
        value >>= 5
        if value == (-1 if bits & 16 else 0):
            return text + chr(bits + 48)
        text += chr((bits | 32) + 48)

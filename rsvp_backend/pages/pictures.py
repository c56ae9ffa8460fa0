"""What the trace page shows of the pictures that are kept: crops, and masks laid over the image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend.demo.picture import overlay
from rsvp_backend.trace_pictures import decoded_mask, kept_size
from rsvp_backend.traces import TraceLog
from rsvp_backend.types import BoolMask

MASK_COLOR = (220, 0, 110)
_FILLED = 105
"""Opacity of a mask's inside, of 255; its edge has all of it."""
_EDGE_PX = 2


def kept_original(traces: TraceLog, trace_id: str) -> Image.Image | None:
    """The image as it is kept, RGB."""
    file = traces.picture(trace_id, "original")
    if file is None:
        return None
    with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
        return image.convert("RGB")


def drawn(traces: TraceLog, record: Mapping[str, Any], name: str) -> bytes | None:
    """A JPEG: ``overlay``, all masks on the image, or ``crop-N``; None for what is not kept or does not exist."""
    if not (name == "overlay" or name.startswith("crop-")):
        return None
    image = kept_original(traces, record["id"])
    if image is None:
        return None
    if name == "overlay":
        shown = overlay(image, _union(traces, record, image.size))
    else:
        index = name.removeprefix("crop-")
        if not (index.isascii() and index.isdigit() and len(index) < 3 and int(index) < len(record["crops_xyxy"])):
            return None
        shown = image.crop(_scaled(record["crops_xyxy"][int(index)], record["size_px"], image.size))
    return jpeg(shown)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def tinted(mask: BoolMask) -> bytes:
    """``mask``, bool ``(height, width)``, as a PNG of its kept size to lay over the image: clear outside."""
    kept = Image.fromarray(mask).resize(kept_size((mask.shape[1], mask.shape[0])), Image.Resampling.NEAREST)
    inside = np.asarray(kept)
    deep = np.logical_and.reduce([np.roll(inside, step, axis) for step in (-_EDGE_PX, _EDGE_PX) for axis in (0, 1)])
    alpha = np.where(inside, np.where(deep, _FILLED, 255), 0).astype(np.uint8)
    picture = Image.new("RGBA", kept.size, (*MASK_COLOR, 0))
    picture.putalpha(Image.fromarray(alpha))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _union(traces: TraceLog, record: Mapping[str, Any], size_px: tuple[int, int]) -> BoolMask:
    merged = np.zeros((size_px[1], size_px[0]), dtype=np.bool_)
    for index in range(len(record["instances"])):
        file = traces.picture(record["id"], f"mask-{index}")
        if file is not None:
            merged |= decoded_mask(file)
    return merged


def _scaled(box: list[int], size_px: list[int], kept_px: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y = kept_px[0] / size_px[0], kept_px[1] / size_px[1]
    left, top = int(box[0] * x), int(box[1] * y)
    return left, top, max(left + 1, round(box[2] * x)), max(top + 1, round(box[3] * y))

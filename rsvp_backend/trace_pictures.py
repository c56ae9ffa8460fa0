"""The pictures of a trace as they are kept: the image, the visual prompt, and a mask for each instance."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rsvp_backend.types import BoolMask, Outcome

Pictures = dict[str, bytes]
"""Files by name: ``original`` and ``marked`` are JPEG, ``mask-0``, ``mask-1``... are PNG with one bit per pixel."""

KEPT_PX = 1280
"""Longest side of what is kept."""
MAX_MASKS = 20
_QUALITY = {"original": 95, "marked": 88}


def kept_size(size_px: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in which an image of that size is kept, its masks with it."""
    scale = min(1.0, KEPT_PX / max(size_px))
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def encoded(outcome: Outcome, picture: Image.Image | None) -> Pictures:
    """``picture``: the image, RGB, in which the masks lie. Only the visual prompt where it is not given."""
    found: Pictures = {}
    if outcome.trace.visual_prompt is not None:
        found["marked"] = _jpeg(outcome.trace.visual_prompt, "marked")
    if picture is None:
        return found
    found["original"] = _jpeg(picture, "original")
    size_px = kept_size(picture.size)
    for index, instance in enumerate(outcome.instances[:MAX_MASKS]):
        found[f"mask-{index}"] = _png(Image.fromarray(instance.mask).resize(size_px, Image.Resampling.NEAREST))
    return found


def decoded_mask(file: bytes) -> BoolMask:
    """Bool ``(height, width)`` of a kept mask."""
    with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
        return np.asarray(image.convert("1"), dtype=np.bool_)


def _jpeg(picture: Image.Image, name: str) -> bytes:
    size_px = kept_size(picture.size)
    kept = picture if picture.size == size_px else picture.resize(size_px, Image.Resampling.BOX, reducing_gap=2.0)
    file = io.BytesIO()
    kept.convert("RGB").save(file, "JPEG", quality=_QUALITY[name], subsampling=0)
    return file.getvalue()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()

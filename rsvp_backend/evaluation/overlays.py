"""The three pictures of one sample: what stage 1 saw with its crops, truth and answer together, and the crop alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from rsvp_backend.evaluation.metrics import BoxXyxy, enclosing
from rsvp_backend.evaluation.samples import Truth
from rsvp_backend.grid import draw_marks
from rsvp_backend.types import BoolMask, Marks

WIDEST_PX = 480
TRUTH_RGB, ANSWER_RGB, CROP_RGB, IGNORED_RGB = (0, 200, 110), (235, 0, 120), (255, 196, 0), (128, 128, 128)
_QUALITY = 78

Rgb = tuple[int, int, int]


def stage1(image: Image.Image, marks: Marks, crops: Sequence[BoxXyxy]) -> Image.Image:
    """The marked image with the crops' frames."""
    shown, scale = _shrunk(image)
    shown = draw_marks(shown, marks)
    draw = ImageDraw.Draw(shown)
    for box in crops:
        _frame(draw, [edge * scale for edge in box], CROP_RGB)
    return shown


def answer(image: Image.Image, truth: Truth, found: BoolMask) -> Image.Image:
    """The answer filled, the truth as an outline (dashed boxes where it is boxes only), ignored pixels grey."""
    shown, scale = _shrunk(image)
    pixels = np.asarray(shown, dtype=np.float32)
    if truth.ignore is not None:
        pixels = _filled(pixels, _fitted(truth.ignore, shown.size), IGNORED_RGB, 0.6)
    mask = _fitted(found, shown.size)
    pixels = _outlined(_filled(pixels, mask, ANSWER_RGB, 0.5), mask, ANSWER_RGB, 1)
    if truth.outlined:
        pixels = _outlined(pixels, _fitted(truth.mask, shown.size), TRUTH_RGB, 2)
    shown = Image.fromarray(pixels.astype(np.uint8))
    if not truth.outlined:
        draw = ImageDraw.Draw(shown)
        for box in truth.boxes:
            _frame(draw, [edge * scale for edge in box], TRUTH_RGB)
    return shown


def crop(image: Image.Image, truth: Truth, found: BoolMask, crops: Sequence[BoxXyxy]) -> Image.Image | None:
    """What stage 2 saw, enlarged or shrunk to `WIDEST_PX`, with both masks; None where there was no crop."""
    around = enclosing(crops)
    if around is None:
        return None
    left, top, right, bottom = (int(edge) for edge in around)
    part = image.crop((left, top, right, bottom))
    ignore = None if truth.ignore is None else truth.ignore[top:bottom, left:right]
    boxes = tuple((a - left, b - top, c - left, d - top) for a, b, c, d in truth.boxes)
    inside = Truth(truth.mask[top:bottom, left:right], ignore, boxes, truth.outlined)
    return answer(part, inside, found[top:bottom, left:right])


def data_uri(image: Image.Image) -> str:
    """The picture inside the page itself, as WebP."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _shrunk(image: Image.Image) -> tuple[Image.Image, float]:
    """RGB with a longer side of `WIDEST_PX`, and the scale."""
    scale = WIDEST_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), scale


def _fitted(mask: BoolMask, size_px: tuple[int, int]) -> BoolMask:
    fitted = Image.fromarray(mask).resize(size_px, Image.Resampling.NEAREST)
    return np.asarray(fitted, dtype=np.bool_)


def _filled(pixels: npt.NDArray[np.float32], mask: BoolMask, rgb: Rgb, share: float) -> npt.NDArray[np.float32]:
    mixed = (1 - share) * pixels + share * np.asarray(rgb, dtype=np.float32)
    return np.where(mask[..., None], mixed, pixels).astype(np.float32)


def _outlined(pixels: npt.NDArray[np.float32], mask: BoolMask, rgb: Rgb, width_px: int) -> npt.NDArray[np.float32]:
    """A line just outside the mask, on a dark one: seen on any ground."""
    dark = ndimage.binary_dilation(mask, iterations=width_px + 1) & ~mask
    line = ndimage.binary_dilation(mask, iterations=width_px) & ~mask
    return _filled(_filled(pixels, dark, (0, 0, 0), 0.7), line, rgb, 1.0)


def _frame(draw: ImageDraw.ImageDraw, box: Sequence[float], rgb: Rgb) -> None:
    left, top, right, bottom = (round(edge) for edge in box)
    if right - left > 3 and bottom - top > 3:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=4)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=rgb, width=2)

"""What is done to a picture before it is asked about, and how its mask comes back into the original's frame."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rsvp_backend.types import BoolMask

SizePx = tuple[int, int]
"""(width, height)."""


@dataclass(frozen=True, slots=True)
class Change:
    """``picture``: RGB -> RGB of any size, without moving anything but by ``mirrored`` (left and right swapped)."""

    name: str
    picture: Callable[[Image.Image], Image.Image]
    mirrored: bool = False

    def shown(self, image: Image.Image) -> Image.Image:
        return self.picture(ImageOps.mirror(image) if self.mirrored else image)

    def there(self, mask: BoolMask, size_px: SizePx) -> BoolMask:
        """``mask``, bool ``(height, width)`` of the original, in the frame of what is shown, which has ``size_px``."""
        return resized(mask[:, ::-1] if self.mirrored else mask, size_px)

    def back(self, mask: BoolMask, size_px: SizePx) -> BoolMask:
        """The inverse of `there`; ``size_px``: of the original."""
        found = resized(mask, size_px)
        return found[:, ::-1] if self.mirrored else found


def resized(mask: BoolMask, size_px: SizePx) -> BoolMask:
    """``mask``, bool ``(height, width)``, at ``size_px``, by its nearest pixels."""
    if (mask.shape[1], mask.shape[0]) == size_px:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size_px, Image.Resampling.NEAREST), dtype=np.bool_)


def shrink(longest_px: int) -> Change:
    """A longest side of at most ``longest_px``; never enlarged."""
    return Change(f"{longest_px}px", partial(_shrunk, longest_px))


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _shrunk(longest_px: int, image: Image.Image) -> Image.Image:
    return _scaled(min(1.0, longest_px / max(image.size)), image)


def _scaled(scale: float, image: Image.Image) -> Image.Image:
    if scale == 1.0:
        return image
    size_px = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size_px, Image.Resampling.LANCZOS)


def _blurred(share: float, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _compressed(quality: int, image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    file.seek(0)
    with Image.open(file) as again:
        return again.convert("RGB")


def _brightness(factor: float, image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


AS_IT_IS = Change("as-it-is", _as_it_is)
TRANSFORMS = (
    Change("mirrored", _as_it_is, mirrored=True),
    Change("half-size", partial(_scaled, 0.5)),
    Change("double-size", partial(_scaled, 2.0)),
    Change("blur", partial(_blurred, 0.01)),
    Change("jpeg-10", partial(_compressed, 10)),
    Change("darker", partial(_brightness, 0.5)),
    Change("brighter", partial(_brightness, 1.3)),
)
"""Blur: a Gaussian whose standard deviation is 1 % of the shorter side; brightness: times 0.5 and 1.3."""
